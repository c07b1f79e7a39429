//! The address space that a virtual CPU holds, and what goes with the virtual CPU from one to the next.
//!
//! What may not be done here: entering the guest.

use std::sync::Arc;

use super::area::room;
use super::child::Child;
use super::context::FpuAt;
use super::cpu::ProcessCpu;
use super::space::Spaces;
use super::spoilt::Remnants;
use crate::engine::Exit;
use crate::machine::memory::Mfn;

pub(super) const LOST: &str = "the engine has no process left for the guest";

/// Where the guest's FPU state is: in this lane of a process, which is kept for it even if it has ended.
#[derive(Clone, Debug)]
pub(super) struct Fpu {
    pub(super) child: Arc<Child>,
    pub(super) at: FpuAt,
}

/// The address space that a virtual CPU holds.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) index: usize,
    pub(super) root: Mfn,
    pub(super) child: Arc<Child>,
}

/// What a virtual CPU knows of its lane in a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) generation: u64,
    /// FS.base and GS.base as they are in the process; `None` if that is not known.
    pub(super) bases: Option<(u64, u64)>,
    /// What its room may hold.
    pub(super) remnants: Remnants,
}

impl ProcessCpu {
    /// Makes the address space of `root` the one that it holds.
    pub(super) fn select(&mut self, spaces: &mut Spaces, root: Mfn) -> Result<(), &'static str> {
        let held = |here: &Here| {
            spaces
                .all
                .get(here.index)
                .is_some_and(|s| s.root == Some(root) && Arc::ptr_eq(&s.child, &here.child))
        };
        self.upheavals = self.shared.upheavals();
        if self.here.as_ref().is_some_and(held) {
            return Ok(());
        }
        let index = match spaces.all.iter().position(|s| s.root == Some(root)) {
            Some(known) => known,
            None => self.adopt(spaces, root).ok_or(LOST)?,
        };
        self.come_to(spaces, index, root)
    }

    /// Holds the address space at `index`.
    pub(super) fn come_to(
        &mut self,
        spaces: &mut Spaces,
        index: usize,
        root: Mfn,
    ) -> Result<(), &'static str> {
        let Some((child, generation, found)) =
            spaces.all.get(index).map(|s| (s.child.clone(), s.generation, s.found))
        else {
            return Err(LOST);
        };
        self.bring_fpu(&child);
        spaces.hold(index, self.here.as_ref().map(|here| here.index), self.lane);
        // Nobody may be about to signal a thread of a process that may be reaped now.
        self.kick.retire();
        self.here = Some(Here { index, root, child });
        let fresh = Seat { generation, bases: None, remnants: found };
        if self.seats.len() <= index {
            self.seats.resize(index + 1, Seat { generation: u64::MAX, ..fresh });
        }
        if let Some(seat) = self.seats.get_mut(index).filter(|seat| seat.generation != generation) {
            *seat = fresh;
        }
        Ok(())
    }

    /// Finds a process for a root that has none: a free one, a new one, or the one unused for longest.
    #[cold]
    fn adopt(&mut self, spaces: &mut Spaces, root: Mfn) -> Option<usize> {
        let index = match spaces.free(self.lane) {
            Some(free) => free,
            None => {
                let index = spaces.oldest(self.lane)?;
                self.leave(spaces, index);
                spaces.mirror.drop_space(&mut spaces.all, index);
                index
            }
        };
        let (kept, fpu_size) = (self.kept_in(spaces, index), self.shared.fpu_size);
        if spaces.give(index, root, self.lane, kept, fpu_size) {
            self.fpu_moved();
        }
        Some(index)
    }

    pub(super) fn leave(&mut self, spaces: &mut Spaces, index: usize) {
        let (kept, fpu_size) = (self.kept_in(spaces, index), self.shared.fpu_size);
        if spaces.leave(index, self.lane, kept, fpu_size) {
            self.fpu_moved();
        }
        self.shared.note_upheaval();
    }

    /// Where the vector state is in the room of a process, if it is in that one.
    fn kept_in(&self, spaces: &Spaces, index: usize) -> Option<u64> {
        let (fpu, space) = (self.fpu.as_ref()?, spaces.all.get(index)?);
        Arc::ptr_eq(&fpu.child, &space.child).then_some(fpu.at.offset())
    }

    pub(super) fn fpu_moved(&mut self) {
        if let Some(fpu) = &mut self.fpu {
            fpu.at = FpuAt::Frame(room::FPU_IN);
        }
    }

    /// Puts the guest's FPU state within reach of another process, while nobody else can come to the old one.
    fn bring_fpu(&mut self, to: &Arc<Child>) {
        let Some(Fpu { child, at }) = self.fpu.as_ref().filter(|fpu| !Arc::ptr_eq(&fpu.child, to)) else {
            return;
        };
        if let (Some(to), Some(from)) = (to.area(self.lane), child.area(self.lane)) {
            to.take_fpu(from, at.offset(), self.shared.fpu_size);
        }
        self.fpu = Some(Fpu { child: to.clone(), at: FpuAt::Frame(room::FPU_IN) });
    }

    /// Sees to it that the FPU state is in place, or can be loaded from the room; the address to load it from, or 0.
    /// Where it is does not change before the guest thread goes on: it may turn out that it never will.
    pub(super) fn carry_fpu(&mut self) -> u64 {
        let Some(here) = &self.here else { return 0 };
        let Some(area) = here.child.area(self.lane) else { return 0 };
        if let Some(image) = self.given.take() {
            area.write_room(room::FPU_IN, &image);
            self.fpu = Some(Fpu { child: here.child.clone(), at: FpuAt::Frame(room::FPU_IN) });
        }
        let fpu = self.fpu.get_or_insert_with(|| Fpu { child: here.child.clone(), at: FpuAt::Registers });
        match fpu.at {
            FpuAt::Registers => 0,
            FpuAt::Frame(offset) => {
                self.shared.accepted.mend(area, offset);
                self.lane.room_va(offset)
            }
        }
    }

    pub(super) fn seat(&mut self) -> Option<&mut Seat> {
        self.here.as_ref().and_then(|here| self.seats.get_mut(here.index))
    }

    /// What was changed of mappings becomes so: at once if others may run there, otherwise on the way in.
    pub(super) fn make_known(&mut self, spaces: &mut Spaces) {
        if !self.lane.is_alone() {
            return spaces.carry_out(self.lane);
        }
        let space = self.here.as_ref().and_then(|here| spaces.all.get(here.index));
        self.batch_waits = space.is_some_and(|s| !s.batch.is_empty());
    }

    /// What it knows of its address space may not be true any more.
    #[cold]
    pub(super) fn look_again(&mut self) -> Result<(), Exit> {
        let shared = self.shared.clone();
        let mut spaces = shared.lock();
        let Some(root) = self.here.as_ref().map(|here| here.root) else { return Err(self.die(LOST)) };
        if let Err(why) = self.select(&mut spaces, root) {
            return Err(self.die(why));
        }
        self.make_known(&mut spaces);
        Ok(())
    }
}
