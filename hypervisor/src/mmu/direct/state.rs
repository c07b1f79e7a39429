//! The state of a domain's page tables, and one operation on it.

use std::ops::Range;

use paravane_abi::{Errno, addr};

use super::frame::{Frame, FrameTable, FrameType, Hold, Owner};
use super::work::Work;
use crate::host::zeroed::NoMemory;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Mfn};
use crate::mmu::log::{Position, TableLog};

/// How many entries one operation looks at before it stops with [`Stop::Restart`]: 512 tables, which takes less
/// than a millisecond or so and is more than an ordinary process has.
pub const BUDGET: u32 = 1 << 18;

/// How many entries the hypervisor has in every L4 table.
pub const RESERVED_ENTRIES: usize = addr::RESERVED_L4_LAST - addr::RESERVED_L4_FIRST + 1;

/// Why an operation was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// It is refused; nothing was changed.
    #[error("the update is refused with {0}; correct the entry or the frame's use")]
    Refused(#[from] Errno),
    /// It is long and not finished, or must wait until every CPU has dropped what it caches
    /// ([`TableLog::take_wanted`]): issue it again, after a check for other work.
    #[error("the operation is not finished; issue it again")]
    Restart,
}

impl From<BadMachineAddress> for Stop {
    /// Every address is checked before it is used: this can only be a bug of the hypervisor.
    fn from(_: BadMachineAddress) -> Self {
        Self::Refused(Errno::EFAULT)
    }
}

/// The state of a domain's page tables: the uses of every frame.
#[derive(Debug)]
pub struct DirectPaging {
    pub(super) frames: FrameTable,
    pub(super) work: Work,
    pub(super) reserved_l4: [u64; RESERVED_ENTRIES],
    pub(super) m2p: Range<u64>,
    pub(super) guest_base: u64,
    /// Somebody else may change memory for as long as it is not written to: see [`DirectPaging::distrust_memory`].
    pub(super) distrusts: bool,
}

impl DirectPaging {
    /// The state of a machine laid out as `layout`, no frame of which is used yet.
    ///
    /// `reserved_l4` is what the engine wants in slots 256 to 271 of every L4 table.
    ///
    /// # Errors
    /// When the host has no memory for an account of so many frames.
    pub fn new(layout: &HypervisorLayout, reserved_l4: [u64; RESERVED_ENTRIES]) -> Result<Self, NoMemory> {
        let mut frames = FrameTable::new(layout.total)?;
        let guest_base = layout.hypervisor_frames();
        for mfn in 0..guest_base {
            frames.set_owner(Mfn(mfn), Owner::Hypervisor);
        }
        for mfn in layout.m2p.clone() {
            frames.set_owner(Mfn(mfn), Owner::ReadOnly);
        }
        frames.set_owner(layout.shared_info, Owner::Shared);
        let (work, m2p) = (Work::new(BUDGET), layout.m2p.clone());
        Ok(Self { frames, work, reserved_l4, m2p, guest_base, distrusts: false })
    }

    /// From now on several vCPUs use the tables: a frame changes its type, or leaves the guest, only when every one of
    /// them is [known](TableLog::is_known) to have dropped its last use.
    ///
    /// # Errors
    /// When the host has no memory for an account of when each frame was last used.
    pub fn expect_several_vcpus(&mut self, log: &mut TableLog) -> Result<(), NoMemory> {
        log.share();
        self.work.expect_several_vcpus();
        self.frames.note_losses()
    }

    /// The state of `mfn`, if there is such a frame.
    pub fn frame(&self, mfn: Mfn) -> Option<Frame> {
        self.frames.get(mfn)
    }

    /// How many entries operations have looked at since this was last asked, to validate tables or to take them
    /// down: what [`BUDGET`] bounds in one operation, and the caller in many. Descriptors that were validated are
    /// among them.
    pub fn take_looked_at(&mut self) -> u64 {
        std::mem::take(&mut self.work.looked_at)
    }

    pub(super) fn pass<'a>(&'a mut self, memory: &'a MachineMemory, log: &'a mut TableLog) -> Pass<'a> {
        Pass {
            frames: &mut self.frames,
            work: &mut self.work,
            reserved_l4: &self.reserved_l4,
            distrusts: self.distrusts,
            memory,
            log,
        }
    }
}

/// One operation: the state, the memory that it accesses, and the log that it writes.
pub(super) struct Pass<'a> {
    pub(super) frames: &'a mut FrameTable,
    pub(super) work: &'a mut Work,
    pub(super) reserved_l4: &'a [u64; RESERVED_ENTRIES],
    pub(super) distrusts: bool,
    pub(super) memory: &'a MachineMemory,
    pub(super) log: &'a mut TableLog,
}

impl Pass<'_> {
    /// Takes a reference and a type reference. Returns whether the frame changed its type to `kind`; `refusal` if it
    /// cannot.
    ///
    /// A CPU may have cached the frame as what it was: writable where it becomes a table, or as a table where the guest
    /// is about to store what it likes. With one vCPU all that is flushed before that CPU runs again. With several the
    /// frame stays what it is until all have dropped it, so that a table that is validated can have no writer left.
    pub(super) fn hold(&mut self, mfn: Mfn, kind: FrameType, refusal: Errno) -> Result<bool, Stop> {
        let held = self.frames.hold(mfn, kind).ok_or_else(|| self.in_use(mfn, kind, refusal));
        let Hold::First(was) = held? else { return Ok(false) };
        if was != kind && was != FrameType::None {
            if let Err(stop) = self.wait_for(self.frames.lost(mfn)) {
                self.frames.undo_hold(mfn, was);
                return Err(stop);
            }
            self.flush_the_only_cpu();
        }
        if matches!(kind, FrameType::Table(_)) && self.frames.get(mfn).is_some_and(Frame::was_table) {
            self.frames.set_was_table(mfn, false);
            self.log.reused_table(mfn);
        }
        Ok(true)
    }

    /// Goes on if every CPU has dropped what was lost before `lost`; otherwise the operation waits for that.
    pub(super) fn wait_for(&mut self, lost: Position) -> Result<(), Stop> {
        if self.log.is_known(lost) {
            return Ok(());
        }
        // Not just up to `lost`: what the operation needs next was probably lost right after.
        self.log.want(self.log.position());
        Err(Stop::Restart)
    }

    /// A frame becomes something else. Where there are several CPUs, none of them uses it any more.
    pub(super) fn flush_the_only_cpu(&mut self) {
        if !self.log.is_shared() {
            self.log.flush_all();
        }
    }

    /// Drops a reference and a type reference by which a CPU used the frame.
    pub(super) fn release(&mut self, mfn: Mfn) {
        self.frames.note_loss(mfn, self.log.position());
        self.frames.release(mfn);
    }

    /// Drops a reference by which a CPU used the frame.
    pub(super) fn put(&mut self, mfn: Mfn) {
        self.frames.note_loss(mfn, self.log.position());
        self.frames.put(mfn);
    }
}
