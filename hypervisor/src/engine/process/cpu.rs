//! A virtual CPU in processes: into the guest, out of it, and what that meant.
//!
//! Runs on the thread that made it. What may not be done here: believing a guest process, allocating or logging on the
//! way in or out.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::area;
use super::area::room;
use super::child::{Child, Image};
use super::context;
use super::context::{FpuAt, Stop, Trap};
use super::fpu;
use super::kick::ProcessKick;
use super::lowest;
use super::mirror::{Filled, Mirror};
use super::script::Terms;
use super::space::Space;
use super::spoilt::{REFUSED, Remnants};
use super::sys::Ended;
use crate::engine::state::{BadState, Breakpoints, NoBreakpoints, VectorState};
use crate::engine::{Cpu, Exit};
use crate::host::host_cpuid::Trapping;
use crate::host::threads;
use crate::machine::kick::Kick;
use crate::machine::memory::{MachineMemory, Mfn};
use crate::mmu::log::TableLog;
use crate::mmu::space::{Pending, VcpuSpace};
use crate::x86::exception::{Fault, page_error, vector};
use crate::x86::registers::Regs;

/// How many address spaces are kept as processes. A guest that uses more still runs: the one that was not
/// used for longest gives its process up.
pub(super) const MAX_SPACES: usize = 16;
/// How often in one entry pages may fault that are mapped already, before the process starts empty again. Faults can be
/// forged, by user programs too, so they are not a reason to end the guest.
const MAX_REPEATS: u32 = 64;

/// Where the guest's FPU state is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fpu {
    pub(super) space: usize,
    pub(super) at: FpuAt,
}

/// A virtual CPU that runs in child processes. Bound to the thread that made it: the children die with that thread.
#[derive(Debug)]
pub struct ProcessCpu {
    pub(super) image: Image,
    pub(super) memory: OwnedFd,
    pub(super) terms: Terms,
    pub(super) spaces: Vec<Space>,
    pub(super) current: usize,
    pub(super) mirror: Mirror,
    pub(super) kick: Arc<ProcessKick>,
    pub(super) fpu: Fpu,
    pub(super) fpu_size: u64,
    pub(super) accepted: fpu::Accepted,
    /// A user program runs.
    pub(super) user: bool,
    /// The guest entered the stub while single-stepping.
    pub(super) stepping: bool,
    pub(super) entries: u64,
    pub(super) dead: Option<&'static str>,
    pub(super) unpinned: Option<libc::cpu_set_t>,
    /// This thread may execute CPUID as little as the guest, for the sake of the switches between the two.
    pub(super) _cpuid: Option<Trapping>,
}

impl ProcessCpu {
    /// Makes the address space of `root` the current one.
    fn select(&mut self, root: Mfn) {
        self.entries += 1;
        let is_root = |s: &Space| s.root == Some(root);
        if !self.spaces.get(self.current).is_some_and(is_root) {
            self.current = match self.spaces.iter().position(is_root) {
                Some(known) => known,
                None => self.adopt(root),
            };
        }
        if let Some(space) = self.spaces.get_mut(self.current) {
            space.last_used = self.entries;
        }
    }

    /// Finds a process for a root that has none: a free one, a new one, or the one unused for longest.
    #[cold]
    fn adopt(&mut self, root: Mfn) -> usize {
        let free = self.spaces.iter().position(|s| s.root.is_none());
        let index = free.or_else(|| self.spawn()).unwrap_or_else(|| {
            let oldest = self.spaces.iter().enumerate().min_by_key(|(_, s)| s.last_used);
            let index = oldest.map_or(0, |(i, _)| i);
            self.leave(index);
            self.mirror.drop_space(&mut self.spaces, index);
            index
        });
        if let Some(space) = self.spaces.get_mut(index) {
            space.root = Some(root);
        }
        index
    }

    /// Notes that what a process holds is of an address space that is gone.
    fn leave(&mut self, index: usize) {
        if let Some(space) = self.spaces.get_mut(index) {
            space.remnants = Remnants::Others;
            // Calls that are not made yet were for that address space.
            space.child.area().clear_steps();
        }
    }

    /// The same for all whose root was something else meanwhile: it is another address space now.
    fn leave_reused(&mut self, pending: &Pending<'_>) {
        if !pending.stale && pending.reused.is_empty() {
            return;
        }
        for index in 0..self.spaces.len() {
            let root = self.spaces.get(index).and_then(|s| s.root);
            if root.is_some_and(|root| pending.stale || pending.reused.iter().any(|table| *table == root)) {
                self.leave(index);
            }
        }
    }

    fn spawn(&mut self) -> Option<usize> {
        if self.spaces.len() >= MAX_SPACES {
            return None;
        }
        // Where the host has no room for another process, the guest shares those that exist.
        let child = Child::spawn(&self.image, self.memory.as_fd(), self.terms).ok()?;
        self.spaces.push(Space::new(child));
        Some(self.spaces.len() - 1)
    }

    /// Puts the guest's FPU state within reach of the current process; the address to load it from, or 0.
    fn carry_fpu(&mut self) -> u64 {
        let Fpu { space, at } = self.fpu;
        let image = match at {
            FpuAt::Registers if space == self.current => None,
            FpuAt::Frame(offset) if space == self.current => Some(offset),
            _ => {
                let pair = (self.spaces.get(self.current), self.spaces.get(space));
                if let (Some(to), Some(from)) = pair {
                    to.child.area().take_fpu(from.child.area(), at.offset(), self.fpu_size);
                }
                Some(room::FPU_IN)
            }
        };
        if let (Some(image), Some(space)) = (image, self.spaces.get(self.current)) {
            self.accepted.mend(space.child.area(), image);
        }
        let load = image.map_or(0, area::room_va);
        self.fpu = Fpu { space: self.current, at: FpuAt::Registers };
        load
    }

    /// One way into the guest and out again.
    fn go(&mut self, regs: &Regs) -> Result<Stop, Exit> {
        self.empty_room();
        let load_fpu = self.carry_fpu();
        let current = self.current;
        if self.spaces.get(current).is_some_and(|s| s.batch.overflowed()) {
            self.mirror.drop_space(&mut self.spaces, current);
        }
        let Some(space) = self.spaces.get_mut(current) else { return Err(Exit::Dead(LOST)) };
        context::store(space.child.area(), regs, space.bases, load_fpu);
        space.resume();
        let handed_over = space.child.wait();
        self.kick.rest();
        let Some(handed_over) = handed_over else {
            let ended = space.child.ended();
            return Err(match self.ended_by_itself(ended) {
                true if self.user => self.replace(),
                itself => self.die(why_dead(ended, itself)),
            });
        };
        space.bases = Some((handed_over.fs_base, handed_over.gs_base));
        let Some(stop) = context::decode(space.child.area(), &handed_over, self.fpu_size) else {
            return Err(match self.user {
                true => self.replace(),
                false => self.die("the guest made up an exit that the engine's stub never makes"),
            });
        };
        self.fpu = Fpu { space: current, at: stop.fpu };
        Ok(stop)
    }

    pub(super) fn die(&mut self, reason: &'static str) -> Exit {
        self.dead = Some(reason);
        Exit::Dead(reason)
    }

    /// What a stop means; `None` if the guest is to be entered again, with what `regs` then hold.
    fn judge(
        &mut self,
        stop: Stop,
        regs: &mut Regs,
        memory: &MachineMemory,
        repeats: &mut u32,
    ) -> Option<Exit> {
        if self.user
            && let Some(exit) = self.judge_user(&stop, regs)
        {
            return Some(exit);
        }
        if stop.trap != Trap::KickBeforeEntry && context::inside_stub(&stop) {
            return self.judge_inside_stub(stop, regs, memory, repeats);
        }
        if stop.trap != Trap::KickBeforeEntry {
            *regs = Regs { selectors: regs.selectors, ..stop.regs };
        }
        match stop.trap {
            // A signal whose kick another exit answered already leaves nothing to tell.
            Trap::Kick | Trap::KickBeforeEntry => self.kick.take().then_some(Exit::Kick),
            Trap::Hypercall => {
                if std::mem::take(&mut self.stepping) {
                    context::with_trap_flag(regs);
                }
                Some(Exit::Hypercall)
            }
            Trap::Syscall => Some(Exit::Syscall),
            Trap::Fault(fault) => Some(Exit::Fault(fault)),
            Trap::Page { address, write, fetch } => self.page_fault(address, (write, fetch), memory, repeats),
        }
    }

    /// A stop with rip in our own code: the state to load was bad, or the guest went there (and stayed there,
    /// if it is a kick).
    #[cold]
    fn judge_inside_stub(
        &mut self,
        stop: Stop,
        regs: &mut Regs,
        memory: &MachineMemory,
        repeats: &mut u32,
    ) -> Option<Exit> {
        if context::is_loading(&stop) {
            // The guest's registers are still those it was to get.
            return match stop.trap {
                Trap::Fault(fault) => Some(Exit::Fault(fault)),
                // The room is always there: it was protected by keys, which are gone with the signal.
                Trap::Page { .. } => self.again(repeats),
                _ => Some(REFUSED),
            };
        }
        *regs = Regs { selectors: regs.selectors, ..stop.regs };
        if context::is_single_step(&stop) {
            context::without_trap_flag(regs);
            self.stepping = true;
            return None;
        }
        match stop.trap {
            Trap::Page { address, write, fetch } => {
                let exit = self.page_fault(address, (write, fetch), memory, repeats)?;
                Some(if let Exit::Dead(_) = exit { exit } else { REFUSED })
            }
            _ => Some(REFUSED),
        }
    }

    fn page_fault(
        &mut self,
        address: u64,
        access: (bool, bool),
        memory: &MachineMemory,
        repeats: &mut u32,
    ) -> Option<Exit> {
        let fault = |error_code| Some(Exit::Fault(Fault { vector: vector::PAGE, error_code, address }));
        if self.terms.m2p.contains(address) {
            // Mapped in every process, and read-only: only a store or a fetch comes here.
            return fault(
                page_error::PRESENT
                    | page_error::USER
                    | if access.0 { page_error::WRITE } else { 0 }
                    | if access.1 { page_error::FETCH } else { 0 },
            );
        }
        match self.mirror.fault(&mut self.spaces, self.current, memory, address, access) {
            Filled::Mapped => None,
            Filled::Again => self.again(repeats),
            Filled::Fault(error_code) => fault(error_code),
            Filled::Unmappable if address < lowest::USUAL => Some(self.die(
                "the guest uses a page below those that Linux lets a process map (sysctl vm.mmap_min_addr); link it \
                 higher, run it as root, or run it with --engine kvm",
            )),
            Filled::Unmappable => Some(self.die(
                "the guest uses linear addresses that the process engine cannot give it (from 0x7e0000000000 up, or \
                 in the upper half); link it lower, or run it with --engine kvm",
            )),
        }
    }
}

impl ProcessCpu {
    /// A fault without a cause. If it repeats, everything in the process is mapped anew; a
    /// guest that makes them up gets nowhere, and a kick gets through.
    fn again(&mut self, repeats: &mut u32) -> Option<Exit> {
        *repeats += 1;
        if *repeats > MAX_REPEATS {
            *repeats = 0;
            self.mirror.drop_space(&mut self.spaces, self.current);
        }
        None
    }
}

pub(super) const LOST: &str = "the engine has no process left for the guest";

fn why_dead(ended: Option<Ended>, by_itself: bool) -> &'static str {
    match ended {
        Some(Ended::Signal(libc::SIGKILL)) if by_itself => {
            "the guest's process did not answer for 0.3 s of CPU time (its code hides in the engine's)"
        }
        Some(Ended::Status(libc::ENOMEM)) => {
            "the host refused memory for the guest's mappings (out of memory, or vm.max_map_count below 20000)"
        }
        Some(Ended::Status(_)) => "the host refused one of the guest's mappings",
        Some(Ended::Signal(libc::SIGSEGV | libc::SIGSYS | libc::SIGBUS)) => {
            "the guest's process destroyed its own way out (it wrote to the engine's room, or used its stack)"
        }
        Some(Ended::Signal(libc::SIGKILL)) => {
            "the guest's process was killed from outside (by a user, or for want of memory)"
        }
        _ => "the guest's process ended from outside",
    }
}

impl Cpu for ProcessCpu {
    fn catch_up(
        &mut self,
        space: &mut VcpuSpace,
        log: &TableLog,
        memory: &MachineMemory,
    ) -> Result<(), &'static str> {
        if let Some(reason) = self.dead {
            return Err(reason);
        }
        let pending = space.pending(log);
        self.leave_reused(&pending);
        self.select(space.root());
        self.mirror.apply(&mut self.spaces, self.current, memory, &pending);
        space.caught_up(log);
        Ok(())
    }

    fn enter(&mut self, regs: &mut Regs, space: &VcpuSpace, memory: &MachineMemory) -> Exit {
        if let Some(reason) = self.dead {
            return Exit::Dead(reason);
        }
        self.user = space.user_mode();
        let mut repeats = 0;
        loop {
            if !context::loadable(regs) {
                return REFUSED;
            }
            let Some(space) = self.spaces.get(self.current) else { return self.die(LOST) };
            self.kick.aim(space.child.pidfd(), space.child.pid());
            if self.kick.take() {
                self.kick.rest();
                return Exit::Kick;
            }
            let stop = match self.go(regs) {
                Ok(stop) => stop,
                Err(exit) => return exit,
            };
            if let Some(exit) = self.judge(stop, regs, memory, &mut repeats) {
                return exit;
            }
        }
    }

    fn save(&mut self) -> Result<VectorState, BadState> {
        if self.entries == 0 {
            return Ok(VectorState::reset());
        }
        let Fpu { space, at } = self.fpu;
        let area = self.spaces.get(space).ok_or(BadState::Refused)?.child.area();
        let mut image = vec![0; usize::try_from(self.fpu_size.min(room::FPU_SIZE)).unwrap_or(0)];
        area.read_room(at.offset(), &mut image);
        Ok(VectorState::from_area(image))
    }

    fn load(&mut self, state: &VectorState) -> Result<(), BadState> {
        self.accepted.check(state)?;
        let current = self.current;
        let area = self.spaces.get(current).ok_or(BadState::Refused)?.child.area();
        let len = usize::try_from(self.fpu_size.min(room::FPU_SIZE)).unwrap_or(0);
        let mut image = vec![0; len];
        for (to, from) in image.iter_mut().zip(state.area()) {
            *to = *from;
        }
        area.write_room(room::FPU_IN, &image);
        self.fpu = Fpu { space: current, at: FpuAt::Frame(room::FPU_IN) };
        Ok(())
    }

    fn debug(&mut self, breakpoints: &Breakpoints) -> Result<(), NoBreakpoints> {
        breakpoints.check()?;
        // Only a tracer sets the debug registers of a process, and nobody traces these (docs/process-engine.md).
        if breakpoints.control == 0 { Ok(()) } else { Err(NoBreakpoints::Absent("the process engine")) }
    }

    fn processes(&self) -> Vec<u32> {
        self.spaces.iter().map(|s| s.child.pid()).collect()
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn take_kick(&mut self) -> bool {
        self.kick.take()
    }
}

impl Drop for ProcessCpu {
    fn drop(&mut self) {
        self.kick.retire();
        if let Some(before) = &self.unpinned {
            threads::unpin(before);
        }
    }
}
