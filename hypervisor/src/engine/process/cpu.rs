//! A virtual CPU in processes: into the guest, out of it, and what that meant.
//!
//! Runs on one thread, which it shares with nobody. What may not be done here: believing a guest process, allocating or
//! logging on the way in or out.

use std::io;
use std::sync::Arc;

use super::area::{Lane, MAX_LANES, room};
use super::context;
use super::context::{FpuAt, Stop, Trap};
use super::hold::{Fpu, Here, LOST, Seat};
use super::kick::ProcessKick;
use super::lowest;
use super::mirror::Filled;
use super::space::Shared;
use super::spoilt::REFUSED;
use super::sys;
use super::sys::Ended;
use crate::engine::state::{BadState, Breakpoints, NoBreakpoints, VectorState};
use crate::engine::{Cpu, Exit};
use crate::host::host_cpuid::Trapping;
use crate::host::threads;
use crate::machine::kick::Kick;
use crate::machine::memory::MachineMemory;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::x86::exception::{Fault, page_error, vector};
use crate::x86::registers::Regs;

/// How often in one entry pages may fault that are mapped already, before the process starts empty again. Faults can be
/// forged, by user programs too, so they are not a reason to end the guest.
const MAX_REPEATS: u32 = 64;

/// A virtual CPU that runs in child processes.
#[derive(Debug)]
pub struct ProcessCpu {
    pub(super) lane: Lane,
    pub(super) here: Option<Here>,
    /// By address space.
    pub(super) seats: Vec<Seat>,
    pub(super) fpu: Option<Fpu>,
    /// A state that was given to it, until it enters.
    pub(super) given: Option<Vec<u8>>,
    /// A user program runs.
    pub(super) user: bool,
    /// The guest entered the stub while single-stepping.
    pub(super) stepping: bool,
    /// There is a batch for its mapper, where it is the only one.
    pub(super) batch_waits: bool,
    /// How many upheavals of the address spaces it has seen.
    pub(super) upheavals: u64,
    pub(super) dead: Option<&'static str>,
    pub(super) kick: Arc<ProcessKick>,
    pub(super) shared: Arc<Shared>,
    /// The thread that runs it, where that was allowed to run before, and that it may execute CPUID as little as the
    /// guest, for the sake of the switches between the two.
    thread: u32,
    unpinned: Option<libc::cpu_set_t>,
    cpuid: Option<Trapping>,
}

impl ProcessCpu {
    /// On no thread yet.
    pub(super) fn new(lane: Lane, shared: Arc<Shared>, kick: Arc<ProcessKick>) -> Self {
        Self {
            lane,
            here: None,
            // As many as there can be processes: it does not grow later.
            seats: Vec::with_capacity(usize::from(MAX_LANES) + 1),
            fpu: None,
            given: None,
            user: false,
            stepping: false,
            batch_waits: false,
            upheavals: 0,
            dead: None,
            kick,
            shared,
            thread: 0,
            unpinned: None,
            cpuid: None,
        }
    }

    /// The calling thread, which is where it should be and as it was in `unpinned` before, runs it.
    pub(super) fn settle(
        &mut self,
        unpinned: Option<libc::cpu_set_t>,
        cpuid: Option<Trapping>,
    ) -> io::Result<()> {
        self.kick.settle()?;
        (self.unpinned, self.cpuid, self.thread) = (unpinned, cpuid, sys::this_thread());
        Ok(())
    }

    /// One way into the guest and out again. `None` if it did not come to that: it is to be tried again.
    fn go(&mut self, regs: &Regs) -> Result<Option<Stop>, Exit> {
        if self.upheavals != self.shared.upheavals() {
            self.look_again()?;
        }
        self.empty_room();
        let load_fpu = self.carry_fpu();
        let bases = self.seat().and_then(|seat| seat.bases);
        let (lane, Some(here)) = (self.lane, &self.here) else { return Err(self.die(LOST)) };
        let Some(area) = here.child.area(lane) else { return Err(self.die(LOST)) };
        context::store(area, regs, bases, load_fpu);
        let resumed = match std::mem::take(&mut self.batch_waits) {
            true => self.shared.lock().resume(here.index, lane),
            false => here.child.resume(lane),
        };
        if resumed && let Some(fpu) = &mut self.fpu {
            fpu.at = FpuAt::Registers;
        }
        let handed_over = if resumed { here.child.wait(lane) } else { None };
        self.kick.rest();
        let Some(handed_over) = handed_over else { return self.lost_process(resumed).map(|()| None) };
        let stop = context::decode(area, lane, &handed_over, self.shared.fpu_size);
        if let Some(seat) = self.seats.get_mut(here.index) {
            seat.bases = Some((handed_over.fs_base, handed_over.gs_base));
        }
        let Some(stop) = stop else {
            return Err(match self.user {
                true => self.replace(),
                false => self.die("the guest made up an exit that the engine's stub never makes"),
            });
        };
        if let Some(fpu) = &mut self.fpu {
            fpu.at = stop.fpu;
        }
        Ok(Some(stop))
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
        if stop.trap != Trap::KickBeforeEntry && context::inside_stub(&stop, self.lane) {
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
        if context::is_loading(&stop, self.lane) {
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
        if self.shared.terms.m2p.contains(address) {
            // Mapped in every process, and read-only: only a store or a fetch comes here.
            return fault(
                page_error::PRESENT
                    | page_error::USER
                    | if access.0 { page_error::WRITE } else { 0 }
                    | if access.1 { page_error::FETCH } else { 0 },
            );
        }
        match self.fill(memory, address, access) {
            Err(why) => Some(self.die(why)),
            Ok(filled) => self.filled(filled, address, repeats),
        }
    }

    /// Maps what the guest's tables say, unless they have it fault.
    fn fill(
        &mut self,
        memory: &MachineMemory,
        address: u64,
        access: (bool, bool),
    ) -> Result<Filled, &'static str> {
        let shared = self.shared.clone();
        let mut guard = shared.lock();
        let spaces = &mut *guard;
        if self.upheavals != shared.upheavals()
            && let Some(root) = self.here.as_ref().map(|here| here.root)
        {
            self.select(spaces, root)?;
        }
        let current = self.here.as_ref().map_or(usize::MAX, |here| here.index);
        let filled = spaces.mirror.fault(&mut spaces.all, current, memory, address, access);
        self.make_known(spaces);
        Ok(filled)
    }

    /// What became of a page fault.
    fn filled(&mut self, filled: Filled, address: u64, repeats: &mut u32) -> Option<Exit> {
        match filled {
            Filled::Mapped => None,
            Filled::Again => self.again(repeats),
            Filled::Fault(error_code) => {
                Some(Exit::Fault(Fault { vector: vector::PAGE, error_code, address }))
            }
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
            let shared = self.shared.clone();
            let mut guard = shared.lock();
            let spaces = &mut *guard;
            if let Some(here) = &self.here {
                spaces.mirror.drop_space(&mut spaces.all, here.index);
            }
            self.make_known(spaces);
        }
        None
    }
}

pub(super) fn why_dead(ended: Option<Ended>, by_itself: bool) -> &'static str {
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
    fn settle_here(&mut self) -> io::Result<()> {
        if self.thread == sys::this_thread() {
            return Ok(());
        }
        let cpu = self.shared.terms.cpus.get(self.lane.index()).copied();
        let unpinned = cpu.and_then(|cpu| threads::pin_to(cpu.into()));
        let cpuid = self.shared.terms.cpuid_traps.then(Trapping::begin).flatten();
        self.settle(unpinned, cpuid)
    }

    fn catch_up(
        &mut self,
        space: &mut VcpuSpace,
        log: &TableLog,
        memory: &MachineMemory,
    ) -> Result<(), &'static str> {
        if let Some(reason) = self.dead {
            return Err(reason);
        }
        let root = space.root();
        let same = self.upheavals == self.shared.upheavals()
            && self.here.as_ref().is_some_and(|here| here.root == root);
        if !(same && space.pending(log).is_nothing()) {
            let shared = self.shared.clone();
            let mut guard = shared.lock();
            let spaces = &mut *guard;
            let pending = spaces.pending(space, log);
            let reused = spaces.reused(&pending);
            for index in (0..spaces.all.len()).filter(|index| reused & 1 << index != 0) {
                self.leave(spaces, index);
            }
            self.select(spaces, root).inspect_err(|why| self.dead = Some(why))?;
            let current = self.here.as_ref().map_or(usize::MAX, |here| here.index);
            spaces.mirror.apply(&mut spaces.all, current, memory, &pending);
            spaces.applied(log);
            self.make_known(spaces);
        }
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
            let Some(here) = &self.here else { return self.die(LOST) };
            self.kick.aim(here.child.pid(), here.child.guest_thread(self.lane));
            if self.kick.take() {
                self.kick.rest();
                return Exit::Kick;
            }
            let stop = match self.go(regs) {
                Ok(Some(stop)) => stop,
                Ok(None) => continue,
                Err(exit) => return exit,
            };
            if let Some(exit) = self.judge(stop, regs, memory, &mut repeats) {
                return exit;
            }
        }
    }

    fn save(&mut self) -> Result<VectorState, BadState> {
        if let Some(image) = &self.given {
            return Ok(VectorState::from_area(image.clone()));
        }
        let Some(Fpu { child, at }) = &self.fpu else { return Ok(VectorState::reset()) };
        let area = child.area(self.lane).ok_or(BadState::Refused)?;
        let mut image = vec![0; self.image_size()];
        area.read_room(at.offset(), &mut image);
        Ok(VectorState::from_area(image))
    }

    fn load(&mut self, state: &VectorState) -> Result<(), BadState> {
        self.shared.accepted.check(state)?;
        let mut image = vec![0; self.image_size()];
        for (to, from) in image.iter_mut().zip(state.area()) {
            *to = *from;
        }
        self.given = Some(image);
        Ok(())
    }

    fn debug(&mut self, breakpoints: &Breakpoints) -> Result<(), NoBreakpoints> {
        breakpoints.check()?;
        // Only a tracer sets the debug registers of a process, and nobody traces these (docs/process-engine.md).
        if breakpoints.control == 0 { Ok(()) } else { Err(NoBreakpoints::Absent("the process engine")) }
    }

    fn processes(&self) -> Vec<u32> {
        self.shared.lock().all.iter().map(|s| s.child.pid()).collect()
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn take_kick(&mut self) -> bool {
        self.kick.take()
    }
}

impl ProcessCpu {
    /// Bytes of an FPU image.
    fn image_size(&self) -> usize {
        usize::try_from(self.shared.fpu_size.min(room::FPU_SIZE)).unwrap_or(0)
    }
}

impl Drop for ProcessCpu {
    fn drop(&mut self) {
        self.kick.retire();
        if let Some(before) = self.unpinned.filter(|_| self.thread == sys::this_thread()) {
            threads::unpin(&before);
        }
    }
}
