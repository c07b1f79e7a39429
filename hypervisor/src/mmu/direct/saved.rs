//! What of the uses of frames is saved with a domain, and how they are counted anew.
//!
//! Counts are never taken from a file. A domain that is restored validates its tables as if its guest had just asked
//! for each pin: what comes out is what the tables say.

use paravane_abi::Errno;

use super::frame::{Frame, FrameType, Level, Owner};
use super::state::{DirectPaging, Stop};
use crate::machine::memory::{MachineMemory, Mfn};
use crate::mmu::log::TableLog;

impl DirectPaging {
    /// The tables that the guest has pinned, each with its level, 1 to 4.
    pub fn pins(&self) -> impl Iterator<Item = (Mfn, u8)> {
        self.guests_range().filter_map(|(mfn, frame)| match frame.kind() {
            FrameType::Table(level) if frame.pinned() => Some((mfn, level.number())),
            _ => None,
        })
    }

    /// The frames that the guest gave back.
    pub fn given_back(&self) -> impl Iterator<Item = Mfn> {
        self.guests_range().filter(|(_, frame)| frame.owner() == Owner::Hypervisor).map(|(mfn, _)| mfn)
    }

    fn guests_range(&self) -> impl Iterator<Item = (Mfn, Frame)> {
        (self.guest_base..).map(Mfn).map_while(|mfn| Some((mfn, self.frames.get(mfn)?)))
    }

    /// Keeps a frame from the guest, which has not used it yet.
    pub fn withhold(&mut self, mfn: Mfn) {
        self.frames.set_owner(mfn, Owner::Hypervisor);
    }

    /// Pins a table that was pinned when the domain was saved.
    pub fn pin_again(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        mfn: Mfn,
        level: u8,
    ) -> Result<(), Stop> {
        let level = match level {
            1 => Level::L1,
            2 => Level::L2,
            3 => Level::L3,
            4 => Level::L4,
            _ => return Err(Errno::EINVAL.into()),
        };
        self.pin(memory, log, mfn, level)
    }

    /// From now on each table is written once it is validated, changed or not. Memory may be a private mapping of a
    /// file: until a page is written, whoever can write to the file could still change a table in it.
    pub fn distrust_memory(&mut self) {
        self.distrusts = true;
    }
}
