//! What a user program may leave behind in a guest process: nothing.
//!
//! A process is a cache of an address space. A user program can write to the room, hand over with any claim, and make
//! the process unfit for the next entry; what it gets for that is a #GP, and its kernel a new process. And a room
//! that served somebody else (another root, or the kernel) is emptied before a user program runs there: saved
//! registers and vector state would be there to be read.
//!
//! What may not be done here: ending the guest for what a user program did.

use std::sync::Arc;

use super::area::{Area, room};
use super::context::{self, FpuAt, Stop, Trap};
use super::cpu::{ProcessCpu, why_dead};
use super::fpu;
use super::hold::{Fpu, LOST};
use super::space::{Space, Spaces};
use super::sys::Ended;
use crate::engine::Exit;
use crate::x86::exception::{Fault, vector};
use crate::x86::registers::Regs;

/// The fault that user code gets for something that it may not do.
pub(super) const REFUSED: Exit = Exit::Fault(Fault { vector: vector::PROTECTION, error_code: 0, address: 0 });

/// What may be in a room that a user program is not to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Remnants {
    /// Nothing.
    None,
    /// What the kernel leaves: no secret from itself.
    Kernels,
    /// What another address space left.
    Others,
}

impl ProcessCpu {
    /// Whether a process that ended did so by what its own code can bring about: a signal frame that found no place, a
    /// system call in the midst of our code, or hiding from kicks.
    fn ended_by_itself(&self, process: u32, ended: Option<Ended>) -> bool {
        match ended {
            Some(Ended::Signal(
                libc::SIGSEGV | libc::SIGSYS | libc::SIGBUS | libc::SIGILL | libc::SIGTRAP | libc::SIGFPE,
            )) => true,
            Some(Ended::Signal(libc::SIGKILL)) => self.kick.lost_patience(process),
            _ => false,
        }
    }

    /// The process in use has ended. Where the guest had not been let go on in it, and there is another by now, nothing
    /// is lost.
    #[cold]
    pub(super) fn lost_process(&mut self, resumed: bool) -> Result<(), Exit> {
        let shared = self.shared.clone();
        let mut spaces = shared.lock();
        let Some(here) = &self.here else { return Err(self.die(LOST)) };
        let (process, ended) = (here.child.pid(), here.child.ended());
        let is_mine = |s: &Space| Arc::ptr_eq(&s.child, &here.child);
        if spaces.all.get(here.index).is_some_and(is_mine) {
            return Err(match self.ended_by_itself(process, ended) {
                true if self.user => self.replace_now(&mut spaces),
                itself => self.die(why_dead(ended, itself)),
            });
        }
        // Another virtual CPU found that out first.
        let (index, root) = (here.index, here.root);
        if !resumed {
            return self.come_to(&mut spaces, index, root).map_err(|why| self.die(why));
        }
        if !self.user {
            return Err(self.die(SHARED_AND_SPOILT));
        }
        Err(self.renewed(&mut spaces))
    }

    /// Gives the address space in use a new process in place of one that a user program has spoilt. Its registers are
    /// what they were when it was entered; its vector state, which was in the process, is lost.
    #[cold]
    pub(super) fn replace(&mut self) -> Exit {
        let shared = self.shared.clone();
        let mut spaces = shared.lock();
        let is_mine = |s: &Space| self.here.as_ref().is_some_and(|here| Arc::ptr_eq(&s.child, &here.child));
        match self.here.as_ref().and_then(|here| spaces.all.get(here.index)).is_some_and(is_mine) {
            true => self.replace_now(&mut spaces),
            // Another virtual CPU has done so.
            false => self.renewed(&mut spaces),
        }
    }

    fn replace_now(&mut self, spaces: &mut Spaces) -> Exit {
        let Some(index) = self.here.as_ref().map(|here| here.index) else { return self.die(LOST) };
        // Nobody may be about to signal a process that is no more.
        self.kick.retire();
        spaces.mirror.drop_space(&mut spaces.all, index);
        if let Some(space) = spaces.all.get(index) {
            // Before there is another: limits on processes count both.
            space.child.end();
        }
        let Some(child) = spaces.birth() else {
            return self
                .die("a user program spoilt the guest's process, and the host has no room for another");
        };
        let generation = spaces.new_generation();
        if let Some(space) = spaces.all.get_mut(index) {
            let (root, last_used, held) = (space.root, space.last_used, space.held);
            *space = Space { root, last_used, held, ..Space::new(child, generation) };
        }
        self.shared.note_upheaval();
        self.renewed(spaces)
    }

    /// Goes on in the process that took the place of a spoilt one.
    fn renewed(&mut self, spaces: &mut Spaces) -> Exit {
        let Some((index, root)) = self.here.as_ref().map(|here| (here.index, here.root)) else {
            return self.die(LOST);
        };
        self.fpu = None;
        if let Err(why) = self.come_to(spaces, index, root) {
            return self.die(why);
        }
        if let Some(here) = &self.here
            && let Some(area) = here.child.area(self.lane)
        {
            fpu::reset(area, room::FPU_IN);
            self.fpu = Some(Fpu { child: here.child.clone(), at: FpuAt::Frame(room::FPU_IN) });
        }
        self.stepping = false;
        REFUSED
    }

    /// What a stop in user mode means where it would mean something else to a kernel; `None` where it does not.
    pub(super) fn judge_user(&mut self, stop: &Stop, regs: &mut Regs) -> Option<Exit> {
        match stop.trap {
            // A user program has no hypercalls: at the call it has its fault. Whether it was the hypercall page's, or
            // made up in the midst of the stub, cannot be told.
            Trap::Hypercall => {
                *regs = stop.regs;
                regs.rip = regs.rip.wrapping_sub(super::stub::CALL_LENGTH);
                Some(self.replace())
            }
            // A jump into the stub: no step of the stub has to be completed.
            Trap::Fault(_)
                if context::inside_stub(stop, self.lane) && !context::is_loading(stop, self.lane) =>
            {
                *regs = stop.regs;
                Some(REFUSED)
            }
            _ => None,
        }
    }

    /// Empties the room of the process in use if somebody else's state may be in it.
    pub(super) fn empty_room(&mut self) {
        let user = self.user;
        let Some(seat) = self.seat() else { return };
        let remnants = seat.remnants;
        if !user {
            if remnants == Remnants::None {
                // What a program said of its bases is not believed.
                seat.bases = None;
            }
            seat.remnants = remnants.max(Remnants::Kernels);
        }
        if remnants == Remnants::Others || (user && remnants == Remnants::Kernels) {
            self.empty_room_now();
        }
    }

    #[cold]
    fn empty_room_now(&mut self) {
        let user = self.user;
        let Some(seat) = self.seat() else { return };
        seat.remnants = if user { Remnants::None } else { Remnants::Kernels };
        // What was claimed of them was claimed by somebody else.
        seat.bases = None;
        let Some(here) = &self.here else { return };
        let Some(area) = here.child.area(self.lane) else { return };
        let fpu = self.fpu.as_ref().filter(|fpu| Arc::ptr_eq(&fpu.child, &here.child));
        let keep = fpu.map(|fpu| fpu.at.offset());
        clear(area, keep, self.shared.fpu_size);
        if keep.is_some() {
            self.fpu_moved();
        }
    }
}

/// The last message of a guest whose kernel was in an address space, and so in a process, that its user programs share.
const SHARED_AND_SPOILT: &str = "a user program spoilt the guest's process while its kernel ran in it on another \
                                 virtual CPU (both use one page-table root)";

/// Clears a room but for the FPU image at `keep`, which moves to [`room::FPU_IN`].
pub(super) fn clear(area: &Area, keep: Option<u64>, fpu_size: u64) {
    let mut image = [0; room::FPU_SIZE as usize];
    let image = image.get_mut(..fpu_size as usize).unwrap_or_default();
    if let Some(at) = keep {
        area.read_room(at, image);
    }
    area.clear_room();
    if keep.is_some() {
        area.write_room(room::FPU_IN, image);
    }
}
