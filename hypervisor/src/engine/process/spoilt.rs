//! What a user program may leave behind in a guest process: nothing.
//!
//! A process is a cache of an address space. A user program can write to the room, hand over with any claim, and make
//! the process unfit for the next entry; what it gets for that is a #GP, and its kernel a new process. And a room
//! that served somebody else (another root, or the kernel) is emptied before a user program runs there: saved
//! registers and vector state would be there to be read.
//!
//! What may not be done here: ending the guest for what a user program did.

use super::area::{Area, room};
use super::child::Child;
use super::context::{self, FpuAt, Stop, Trap};
use super::cpu::{Fpu, LOST, ProcessCpu};
use super::fpu;
use super::space::Space;
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
    pub(super) fn ended_by_itself(&self, ended: Option<Ended>) -> bool {
        match ended {
            Some(Ended::Signal(
                libc::SIGSEGV | libc::SIGSYS | libc::SIGBUS | libc::SIGILL | libc::SIGTRAP | libc::SIGFPE,
            )) => true,
            Some(Ended::Signal(libc::SIGKILL)) => self.kick.lost_patience(),
            _ => false,
        }
    }

    /// Gives the address space in use a new process in place of one that a user program has spoilt. Its registers are
    /// what they were when it was entered; its vector state, which was in the process, is lost.
    #[cold]
    pub(super) fn replace(&mut self) -> Exit {
        let current = self.current;
        // Nobody may be about to signal a process whose descriptor goes.
        self.kick.retire();
        self.mirror.drop_space(&mut self.spaces, current);
        let Some(space) = self.spaces.get_mut(current) else { return self.die(LOST) };
        // Before there is another: limits on processes count both.
        space.child.end();
        let Ok(child) = Child::spawn(&self.image, std::os::fd::AsFd::as_fd(&self.memory), self.terms) else {
            return self
                .die("a user program spoilt the guest's process, and the host has no room for another");
        };
        fpu::reset(child.area(), room::FPU_IN);
        *space = Space { root: space.root, last_used: space.last_used, ..Space::new(child) };
        self.fpu = Fpu { space: current, at: FpuAt::Frame(room::FPU_IN) };
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
            Trap::Fault(_) if context::inside_stub(stop) && !context::is_loading(stop) => {
                *regs = stop.regs;
                Some(REFUSED)
            }
            _ => None,
        }
    }

    /// Empties the room of the process in use if somebody else's state may be in it.
    pub(super) fn empty_room(&mut self) {
        let user = self.user;
        let Some(space) = self.spaces.get_mut(self.current) else { return };
        let remnants = space.remnants;
        if !user {
            if remnants == Remnants::None {
                // What a program said of its bases is not believed.
                space.bases = None;
            }
            space.remnants = remnants.max(Remnants::Kernels);
        }
        if remnants == Remnants::Others || (user && remnants == Remnants::Kernels) {
            self.empty_room_now();
        }
    }

    #[cold]
    fn empty_room_now(&mut self) {
        let (user, current) = (self.user, self.current);
        let Some(space) = self.spaces.get_mut(current) else { return };
        space.remnants = if user { Remnants::None } else { Remnants::Kernels };
        // What was claimed of them was claimed by somebody else.
        space.bases = None;
        let area = space.child.area();
        let keep = (self.fpu.space == current).then_some(self.fpu.at.offset());
        clear(area, keep, self.fpu_size);
        if keep.is_some() {
            self.fpu.at = FpuAt::Frame(room::FPU_IN);
        }
    }
}

/// Clears a room but for the FPU image at `keep`, which moves to [`room::FPU_IN`].
fn clear(area: &Area, keep: Option<u64>, fpu_size: u64) {
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
