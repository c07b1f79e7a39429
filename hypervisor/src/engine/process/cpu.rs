//! A virtual CPU in processes: into the guest, out of it, and what that meant.
//!
//! Runs on one thread, which it shares with nobody. What may not be done here: believing a guest process, allocating or
//! logging on the way in or out.

use std::io;
use std::sync::Arc;

use super::area::{Lane, room};
use super::child::Child;
use super::context;
use super::context::{FpuAt, Stop, Trap};
use super::kick::ProcessKick;
use super::lowest;
use super::mirror::Filled;
use super::space::{Shared, Spaces};
use super::spoilt::{REFUSED, Remnants};
use super::sys;
use super::sys::Ended;
use crate::engine::state::{BadState, Breakpoints, NoBreakpoints, VectorState};
use crate::engine::{Cpu, Exit};
use crate::host::host_cpuid::Trapping;
use crate::host::threads;
use crate::machine::kick::Kick;
use crate::machine::memory::{MachineMemory, Mfn};
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::x86::exception::{Fault, page_error, vector};
use crate::x86::registers::Regs;

/// How often in one entry pages may fault that are mapped already, before the process starts empty again. Faults can be
/// forged, by user programs too, so they are not a reason to end the guest.
const MAX_REPEATS: u32 = 64;

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
    generation: u64,
    /// FS.base and GS.base as they are in the process; `None` if that is not known.
    pub(super) bases: Option<(u64, u64)>,
    /// What its room may hold.
    pub(super) remnants: Remnants,
}

/// A virtual CPU that runs in child processes.
#[derive(Debug)]
pub struct ProcessCpu {
    pub(super) lane: Lane,
    pub(super) here: Option<Here>,
    /// By address space.
    seats: Vec<Seat>,
    pub(super) fpu: Option<Fpu>,
    /// A state that was given to it, until it enters.
    given: Option<Vec<u8>>,
    /// A user program runs.
    pub(super) user: bool,
    /// The guest entered the stub while single-stepping.
    pub(super) stepping: bool,
    /// There is a batch for its mapper, where it is the only one.
    batch_waits: bool,
    /// How many upheavals of the address spaces it has seen.
    upheavals: u64,
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
            seats: Vec::new(),
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

    /// Makes the address space of `root` the one that it holds.
    fn select(&mut self, spaces: &mut Spaces, root: Mfn) -> Result<(), &'static str> {
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
            // Never more than there are processes.
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

    fn leave(&mut self, spaces: &mut Spaces, index: usize) {
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
    fn carry_fpu(&mut self) -> u64 {
        let Some(here) = &self.here else { return 0 };
        let Some(area) = here.child.area(self.lane) else { return 0 };
        if let Some(image) = self.given.take() {
            area.write_room(room::FPU_IN, &image);
            self.fpu = Some(Fpu { child: here.child.clone(), at: FpuAt::Frame(room::FPU_IN) });
        }
        let fpu = self.fpu.get_or_insert_with(|| Fpu { child: here.child.clone(), at: FpuAt::Registers });
        match std::mem::replace(&mut fpu.at, FpuAt::Registers) {
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
    fn make_known(&mut self, spaces: &mut Spaces) {
        if !self.lane.is_alone() {
            return spaces.carry_out(self.lane);
        }
        let space = self.here.as_ref().and_then(|here| spaces.all.get(here.index));
        self.batch_waits = space.is_some_and(|s| !s.batch.is_empty());
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

    /// What it knows of its address space may not be true any more.
    #[cold]
    fn look_again(&mut self) -> Result<(), Exit> {
        let shared = self.shared.clone();
        let mut spaces = shared.lock();
        let Some(root) = self.here.as_ref().map(|here| here.root) else { return Err(self.die(LOST)) };
        if let Err(why) = self.select(&mut spaces, root) {
            return Err(self.die(why));
        }
        self.make_known(&mut spaces);
        Ok(())
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

pub(super) const LOST: &str = "the engine has no process left for the guest";

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
            for index in spaces.reused(&pending) {
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
