//! Frames that a guest returns or gets, and frames that the host writes to.
//!
//! Other parts of the host write to guest memory, too (a device's data, a hypercall's result). If a write goes through
//! the guest's page tables, their rights apply; if the guest names a frame, [`DirectPaging::get_writable`] decides.

use paravane_abi::{Errno, addr};

use super::frame::{FrameType, Owner};
use super::state::{DirectPaging, Stop};
use crate::machine::memory::{MachineMemory, Mfn};
use crate::mmu::log::TableLog;

impl DirectPaging {
    /// Takes a frame from the guest, which must not use it any more: `decrease_reservation` and similar operations.
    ///
    /// A frame with references is refused with EBUSY, one that the guest does not own with EINVAL.
    pub fn take_from_guest(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        mfn: Mfn,
    ) -> Result<(), Stop> {
        self.pass(memory, log).operation(None, |pass| {
            let frame = pass.frames.guest(mfn).ok_or(Errno::EINVAL)?;
            if frame.refs() != 0 {
                return Err(Errno::EBUSY.into());
            }
            // Even a translation for reading must not outlive this.
            pass.wait_for(pass.frames.lost(mfn))?;
            pass.frames.set_owner(mfn, Owner::Hypervisor);
            pass.flush_the_only_cpu();
            Ok(())
        })?;
        self.set_m2p(memory, mfn, addr::INVALID_M2P_ENTRY)
    }

    /// Returns a frame that was taken from the guest, as its page `pfn`. Its contents are unchanged.
    pub fn give_to_guest(&mut self, memory: &MachineMemory, mfn: Mfn, pfn: u64) -> Result<(), Errno> {
        let frame = self.frames.get(mfn).ok_or(Errno::EINVAL)?;
        if mfn.0 < self.guest_base || frame.owner() != Owner::Hypervisor {
            return Err(Errno::EINVAL);
        }
        self.frames.set_owner(mfn, Owner::Guest);
        self.set_m2p(memory, mfn, pfn).map_err(|_| Errno::EINVAL)
    }

    /// Lets the host write to a frame that the guest named, until [`DirectPaging::put_writable`].
    ///
    /// Refused with EINVAL when the frame is not the guest's, or is a page table or holds descriptors.
    pub fn get_writable(&mut self, memory: &MachineMemory, log: &mut TableLog, mfn: Mfn) -> Result<(), Stop> {
        self.pass(memory, log)
            .operation(None, |pass| pass.hold(mfn, FrameType::Writable, Errno::EINVAL).map(drop))
    }

    /// Undoes one [`DirectPaging::get_writable`].
    pub fn put_writable(&mut self, mfn: Mfn) {
        self.frames.release(mfn);
    }

    /// [`DirectPaging::get_writable`] for `frames` consecutive frames: all of them, or none.
    ///
    /// Takes time in proportion to their number, which the caller must bound.
    pub fn get_writable_run(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        first: Mfn,
        frames: u64,
    ) -> Result<(), Stop> {
        self.pass(memory, log).operation(None, |pass| {
            // A CPU may have cached one in its former use as a table.
            pass.wait_for(pass.frames.lost_in_run(first, frames))?;
            if pass.frames.hold_writable(first, frames).ok_or(Errno::EINVAL)? {
                pass.flush_the_only_cpu();
            }
            Ok(())
        })
    }

    /// Undoes one [`DirectPaging::get_writable_run`].
    pub fn put_writable_run(&mut self, first: Mfn, frames: u64) {
        self.frames.release_run(first, frames);
    }
}
