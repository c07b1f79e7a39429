//! Page-table entries for granted frames: written and taken back by the hypervisor, for the guest.
//!
//! Such an entry is an entry like any other: it is counted as its rights say, the guest may overwrite it, and
//! then it is gone. `pv::grants` knows what is mapped by which grant; here an entry is only made, or found to be what
//! it should be and replaced. What may not be done here: looking at a grant table.

use paravane_abi::{Errno, pte};

use super::frame::{FrameType, Level, Owner};
use super::state::{DirectPaging, Pass, Stop};
use crate::machine::memory::{MachineMemory, Maddr, Mfn};
use crate::mmu::log::TableLog;
use crate::x86::walk;
use crate::x86::walk::MachineTables;

/// The L1 entry for a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The one of a linear address, in the address space that the CPU uses.
    Linear(u64),
    /// The one at a machine address.
    Entry(u64),
}

/// A frame, with the rights that a grant gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The frame.
    pub frame: Mfn,
    /// Whether it may also be written.
    pub writable: bool,
}

impl Granted {
    /// The bits of an entry with these rights.
    fn entry(self) -> u64 {
        let entry = pte::make(self.frame.0, pte::PRESENT);
        if self.writable { entry | pte::RW } else { entry }
    }
}

impl DirectPaging {
    /// Lets the guest map a frame of the hypervisor's for reading and writing.
    pub fn share(&mut self, mfn: Mfn) {
        self.frames.set_owner(mfn, Owner::Shared);
    }

    /// Whether a frame belongs to the domain, so that it can be granted: its own memory, or what is shared with it.
    pub fn is_domains(&self, mfn: Mfn) -> bool {
        self.frames.get(mfn).is_some_and(|f| matches!(f.owner(), Owner::Guest | Owner::Shared))
    }

    /// Maps a granted frame where `place` says, in the address space of `root`; `flags` are the entry's other bits.
    /// What the entry held before is dropped.
    ///
    /// Refused with EINVAL when `place` is not an entry of an L1 table, with EBUSY when the frame is in use in a way
    /// that excludes this.
    pub fn map_granted(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        root: Mfn,
        place: Place,
        granted: Granted,
        flags: u64,
    ) -> Result<(), Stop> {
        self.pass(memory, log).operation(None, |pass| {
            let at = pass.l1_entry(root, place)?;
            pass.update_l1(at, granted.entry() | flags)
        })
    }

    /// Takes the mapping of a granted frame back, and everything that a CPU may have cached of it before the caller
    /// goes on ([`TableLog::take_wanted`]). In its place comes the mapping of the linear address `replacement`, which
    /// then has none.
    ///
    /// Refused with EINVAL, nothing being changed, when `place` does not map that frame with just those rights.
    pub fn unmap_granted(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        root: Mfn,
        place: Place,
        granted: Granted,
        replacement: Option<u64>,
    ) -> Result<(), Stop> {
        const SAME: u64 = pte::ADDR_MASK | pte::PRESENT | pte::RW;
        self.pass(memory, log).operation(None, |pass| {
            let at = pass.l1_entry(root, place)?;
            if (memory.load_u64(at)? ^ granted.entry()) & SAME != 0 {
                return Err(Errno::EINVAL.into());
            }
            match replacement {
                None => pass.update_l1(at, 0)?,
                Some(va) => {
                    let from = pass.l1_entry(root, Place::Linear(va))?;
                    if from == at {
                        return Err(Errno::EINVAL.into());
                    }
                    let moved = memory.load_u64(from)?;
                    pass.update_l1(at, moved)?;
                    // This cannot be interrupted: nothing waits for the removal of an L1 entry.
                    pass.update_l1(from, 0)?;
                }
            }
            pass.log.flush_all();
            pass.log.want(pass.log.position());
            Ok(())
        })
    }

    /// Takes the references that a mapping would, without one: for what is done with a frame by its number.
    ///
    /// Refused with EBUSY or EPERM when the frame cannot be used in this way.
    pub fn hold_granted(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        granted: Granted,
    ) -> Result<(), Stop> {
        self.pass(memory, log).operation(None, |pass| pass.map_page(granted.entry()))
    }

    /// Drops what one [`DirectPaging::hold_granted`] took.
    pub fn release_granted(&mut self, memory: &MachineMemory, log: &mut TableLog, granted: Granted) {
        self.pass(memory, log).unlink(granted.entry(), Level::L1);
    }
}

impl Pass<'_> {
    /// The machine address of an entry of an L1 table of the guest.
    fn l1_entry(&self, root: Mfn, place: Place) -> Result<Maddr, Errno> {
        let at = match place {
            Place::Linear(va) => {
                let found = walk::find_entry(self.memory, &MachineTables, root.maddr().0, va, 1);
                found.map_err(|_| Errno::EINVAL)?.entry
            }
            Place::Entry(at) if at.is_multiple_of(8) => Maddr(at),
            Place::Entry(_) => return Err(Errno::EINVAL),
        };
        let held = self.frames.guest(at.mfn()).and_then(|f| f.held_as());
        if held == Some(FrameType::Table(Level::L1)) { Ok(at) } else { Err(Errno::EINVAL) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::target;
    use super::*;

    #[test]
    fn an_entry_names_the_frame_and_the_right() {
        let granted = Granted { frame: Mfn(0x1234), writable: true };
        assert_eq!(target(granted.entry()), Mfn(0x1234));
        assert_eq!(granted.entry() & 0xfff, pte::PRESENT | pte::RW);
        assert_eq!(Granted { writable: false, ..granted }.entry() & 0xfff, pte::PRESENT);
    }
}
