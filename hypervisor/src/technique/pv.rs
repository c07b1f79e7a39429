//! Paravirtualization: what the exits of a kernel mean that asks by hypercalls. The calls are in [`crate::pv`].

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use paravane_abi::hypercall::IRET;
use paravane_abi::trap::{TRAP_GP_FAULT, TRAP_INVALID_OP};
use paravane_abi::virq::VIRQ_TIMER;

use super::{Domain, EngineNeed, Runners, Saver, Technique, on_any_host};
use crate::autopsy::{Testimony, Witness};
use crate::engine::state::VectorState;
use crate::engine::{Coherence, Cpu, Exit};
use crate::host::run_delay::RunDelay;
use crate::image::GuestKind;
use crate::ledger::{Cause, Ledger};
use crate::machine::end::DomainEnd;
use crate::machine::layout::OwnCode;
use crate::machine::memory::MachineMemory;
use crate::machine::time::{Clock, Due};
use crate::mmu::log::Position;
use crate::monitor::inspect::Inspect;
use crate::monitor::seen::Seen;
use crate::monitor::{Handled, Next, Runner};
use crate::pv::access::GuestMemory;
use crate::pv::context::PvContext;
use crate::pv::domain::PvDomain;
use crate::pv::event::doorbell::Doorbells;
use crate::pv::fixup::ExceptionOutcome;
use crate::pv::guest_pointer::GuestPtr;
use crate::pv::hypercall;
use crate::pv::vcpu::{MAX_VCPUS, PvVcpu, RunState, VcpuId};
use crate::virtio::Slot;
use crate::x86::decode::SYSCALL_LENGTH;
use crate::x86::exception::Fault;
use crate::x86::registers::Regs;

mod inspect;
mod make;
mod saved;
mod testimony;

/// The row of the table.
pub(super) const TECHNIQUE: Technique = Technique {
    name: "pv",
    about: "paravirtual: the kernel asks, by hypercalls",
    runs: GuestKind::Pv,
    engine: EngineNeed::Deprivileged,
    max_vcpus: MAX_VCPUS,
    available: on_any_host,
    shadow_frames: |_| 0,
    own_code: OwnCode::NONE,
    own_frames: make::own_frames,
    device_parameters: |_| None,
    undebuggable: None,
    make: make::make,
    restore: Some(saved::restore),
};

/// A paravirtual guest: its domain, and its vCPUs.
pub struct PvGuest {
    shared: Arc<Shared>,
    boot: PvRunner,
    others: Vec<PvRunner>,
    clock: Clock,
}

impl Domain for PvGuest {
    fn saver(&self) -> Option<Box<dyn Saver>> {
        Some(Box::new(Arc::clone(&self.shared)))
    }

    fn runners(&mut self) -> Runners<'_> {
        let others = self.others.iter_mut().map(|runner| runner as &mut (dyn Runner + Send)).collect();
        Runners { boot: &mut self.boot, others }
    }

    fn last(&self) -> Regs {
        let ended_by = self.shared.ended_by.load(Ordering::Relaxed);
        let other = self.others.iter().find(|runner| runner.vcpu.id.index() == ended_by);
        other.unwrap_or(&self.boot).vcpu.regs
    }

    fn clock(&self) -> Clock {
        self.clock
    }

    fn end(&self) -> DomainEnd {
        self.shared.lock().end.clone().unwrap_or(DomainEnd::Interrupted)
    }

    fn with_slots(&self, look: &mut dyn FnMut(&[&Slot])) {
        let domain = self.shared.lock();
        let slots: Vec<_> = domain.virtio.iter().map(|device| &device.slot).collect();
        look(&slots);
    }

    fn into_ledger(self: Box<Self>) -> Ledger {
        let mut sum = self.boot.vcpu.ledger;
        self.others.iter().for_each(|runner| sum.merge(&runner.vcpu.ledger));
        sum
    }

    fn testimonies(&mut self) -> Vec<Testimony> {
        let domain = self.shared.lock();
        let ended_by = self.shared.ended_by.load(Ordering::Relaxed);
        let all = std::iter::once(&self.boot).chain(&self.others).map(|runner| &runner.vcpu);
        let mut all: Vec<&PvVcpu> = all.filter(|vcpu| vcpu.state != RunState::Offline).collect();
        // The one that ended the domain comes first.
        all.sort_by_key(|vcpu| vcpu.id.index() != ended_by);
        all.into_iter().map(|vcpu| testimony::of(&domain, vcpu)).collect()
    }

    fn peek(&mut self, vcpu: u32, va: u64) -> Option<u64> {
        let mut all = std::iter::once(&self.boot).chain(&self.others);
        let runner = all.find(|runner| runner.vcpu.id.number() == vcpu)?;
        GuestMemory::new(&self.shared.memory, runner.vcpu.space.root()).read(GuestPtr::new(va)).ok()
    }
}

/// What the vCPUs of a guest share.
pub(super) struct Shared {
    domain: Mutex<PvDomain>,
    memory: Arc<MachineMemory>,
    bells: Arc<Doorbells>,
    /// Where there are several vCPUs: what they have seen of changes of page tables, while they run.
    several: Option<Seen>,
    coherence: Coherence,
    clock: Clock,
    /// How many wait for the lock of the domain.
    waiting: AtomicU32,
    /// The vCPU that ended the domain, by number.
    ended_by: AtomicUsize,
    /// The states that vCPUs have handed over.
    saved: saved::Handed,
}

/// What it takes at most to wake a thread on another CPU, and some.
const LONGEST_HANDOVER: Duration = Duration::from_micros(500);

impl Shared {
    pub(super) fn new(domain: PvDomain, coherence: Coherence) -> Self {
        let vcpus = domain.peers.count();
        Self {
            memory: Arc::clone(&domain.memory),
            bells: Arc::clone(&domain.bells),
            several: (vcpus > 1).then(|| Seen::new(vcpus)),
            coherence,
            clock: domain.clock,
            waiting: AtomicU32::new(0),
            ended_by: AtomicUsize::new(usize::MAX),
            saved: saved::Handed::new(vcpus),
            domain: Mutex::new(domain),
        }
    }

    /// The domain lock. Never kept in the guest or asleep: docs/locking.md.
    fn lock(&self) -> MutexGuard<'_, PvDomain> {
        match self.domain.try_lock() {
            Ok(domain) => domain,
            Err(TryLockError::Poisoned(domain)) => domain.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.waiting.fetch_add(1, Ordering::Relaxed);
                let domain = self.domain.lock().unwrap_or_else(PoisonError::into_inner);
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                domain
            }
        }
    }

    /// Lets those go first who wait for the lock, which the caller has just let go and would take again at once: a
    /// thread that is woken takes longer than a way into the guest and back.
    fn hand_over(&self) {
        let waiting = self.waiting.load(Ordering::Relaxed);
        let until = Instant::now() + LONGEST_HANDOVER;
        while waiting != 0 && self.waiting.load(Ordering::Relaxed) >= waiting && Instant::now() < until {
            std::thread::yield_now();
        }
    }

    /// Notes who has ended the domain, if it has just ended. Before the vCPU that did lets go of the lock: another one
    /// that finds it ended is not to blame.
    fn note_end(&self, domain: &PvDomain, vcpu: VcpuId) {
        if domain.end.is_some() {
            let _ = self.ended_by.compare_exchange(
                usize::MAX,
                vcpu.index(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }

    /// Waits until no vCPU can use what a change before `position` took away, where each has to see to that itself. The
    /// caller is outside the guest and holds no lock.
    fn have_everyone_know(&self, seen: &Seen, position: Position) {
        let domain = self.lock();
        seen.demand(position);
        drop(domain);
        seen.behind(position)
            .filter_map(|vcpu| u32::try_from(vcpu).ok().and_then(VcpuId::new))
            .for_each(|vcpu| self.bells.kick(vcpu));
        seen.wait_for(position);
        self.lock().log.everyone_knows(position);
    }
}

impl Shared {
    /// The way into the guest where other vCPUs change the page tables as well. `must_be_known` is up to where all
    /// others must be current before.
    fn enter_beside_others(
        &self,
        seen: &Seen,
        vcpu: &mut PvVcpu,
        (must_be_known, now): (Option<Position>, u64),
        cpu: &mut dyn Cpu,
    ) -> Exit {
        let each_for_itself = self.coherence == Coherence::EveryCpu;
        if let Some(position) = must_be_known.filter(|_| each_for_itself) {
            self.have_everyone_know(seen, position);
        }
        loop {
            let mut domain = self.lock();
            PvContext { domain: &mut domain, vcpu }.follow_wall_clock(now);
            self.note_end(&domain, vcpu.id);
            if let Err(why) = cpu.catch_up(&mut vcpu.space, &domain.log, &self.memory) {
                return Exit::Dead(why);
            }
            if !each_for_itself {
                domain.log.applied_for_everyone();
            }
            drop(domain);
            if seen.enter(vcpu.id.index(), vcpu.space.position()) || !each_for_itself {
                break;
            }
        }
        let exit = cpu.enter(&mut vcpu.regs, &vcpu.space, &self.memory);
        seen.leave(vcpu.id.index());
        exit
    }
}

/// A vCPU of a paravirtual guest.
pub struct PvRunner {
    shared: Arc<Shared>,
    vcpu: PvVcpu,
    /// Up to where all other vCPUs must be current before this one runs on.
    must_be_known: Option<Position>,
    /// System time of the entry to come.
    now: u64,
    /// What the host's scheduler takes from it.
    stolen: Stolen,
    /// The vector registers that it begins with, if it was restored.
    vectors: Option<VectorState>,
}

/// The time that the host's scheduler takes from a vCPU, as far as its guest was told.
#[derive(Default)]
struct Stolen {
    delay: Option<RunDelay>,
    /// What was told, in all.
    told: u64,
    /// System time of the last look.
    looked: u64,
}

/// How long the guest's account of stolen time may be behind: a look at it is a system call.
const STOLEN_LATE_NS: u64 = 1_000_000;

impl Stolen {
    /// What was taken since the last look, if that was a while ago.
    fn since_last_look(&mut self, now: u64) -> u64 {
        if now.saturating_sub(self.looked) < STOLEN_LATE_NS {
            return 0;
        }
        let is_first = self.looked == 0;
        self.looked = now;
        if is_first {
            self.delay = RunDelay::of_this_thread().ok();
        }
        let Some(delay) = self.delay.as_ref().and_then(RunDelay::ns) else { return 0 };
        let since = delay.saturating_sub(self.told);
        self.told = delay;
        if is_first { 0 } else { since }
    }
}

impl PvRunner {
    pub(super) fn new(shared: Arc<Shared>, vcpu: PvVcpu) -> Self {
        Self { shared, vcpu, must_be_known: None, now: 0, stolen: Stolen::default(), vectors: None }
    }
}

impl Runner for PvRunner {
    fn regs(&self) -> &Regs {
        &self.vcpu.regs
    }

    fn memory(&self) -> &MachineMemory {
        &self.shared.memory
    }

    /// All calls leave from the same page: where it was called from is on the stack, unless it was jumped to (`iret`).
    fn place(&mut self, exit: Exit) -> u64 {
        let regs = &self.vcpu.regs;
        if exit != Exit::Hypercall || regs.rax == IRET {
            return regs.rip;
        }
        // A walk notes that the page was accessed, in an entry that must be one still.
        let _domain = self.shared.lock();
        let guest = GuestMemory::new(&self.shared.memory, self.vcpu.space.root());
        guest.read(GuestPtr::new(regs.rsp)).unwrap_or(regs.rip)
    }

    fn begin(&mut self, cpu: &mut dyn Cpu) {
        self.load_vectors(cpu);
    }

    fn save(&mut self, cpu: &mut dyn Cpu) {
        self.hand_over_state(cpu);
    }

    fn enter(&mut self, cpu: &mut dyn Cpu) -> Exit {
        let Self { shared, vcpu, must_be_known, now, .. } = self;
        if let Some(seen) = &shared.several {
            return shared.enter_beside_others(seen, vcpu, (must_be_known.take(), *now), cpu);
        }
        let mut domain = shared.lock();
        let mut cx = PvContext { domain: &mut domain, vcpu };
        cx.follow_wall_clock(*now);
        cx.allow_crossing();
        shared.note_end(&domain, vcpu.id);
        let caught_up = cpu.catch_up(&mut vcpu.space, &domain.log, &shared.memory);
        drop(domain);
        if let Err(why) = caught_up {
            return Exit::Dead(why);
        }
        let exit = cpu.enter(&mut vcpu.regs, &vcpu.space, &shared.memory);
        if let Some(crossed) = cpu.crossed() {
            vcpu.crossed(crossed);
        }
        exit
    }

    fn handle(&mut self, exit: Exit) -> Handled {
        let Self { shared, vcpu, must_be_known, .. } = self;
        let mut domain = shared.lock();
        let handled = handle(&mut PvContext { domain: &mut domain, vcpu }, exit);
        *must_be_known = (*must_be_known).max(domain.log.take_wanted());
        shared.note_end(&domain, vcpu.id);
        drop(domain);
        let (yields, again) = (std::mem::take(&mut vcpu.yields), std::mem::take(&mut vcpu.calls_again));
        if shared.several.is_some() {
            if again {
                shared.hand_over();
            }
            if yields {
                std::thread::yield_now();
            }
        }
        handled
    }

    fn prepare(&mut self) -> Next {
        // Only a guest that has asked for copies of its account pays for the looks.
        let asks = self.vcpu.runstate.area != 0;
        let stolen = if asks { self.stolen.since_last_look(self.shared.clock.now()) } else { 0 };
        let mut domain = self.shared.lock();
        let mut cx = PvContext { domain: &mut domain, vcpu: &mut self.vcpu };
        if stolen != 0 {
            cx.steal(stolen);
        }
        let next = prepare(&mut cx);
        self.shared.note_end(&domain, self.vcpu.id);
        drop(domain);
        if next == Next::End {
            // Whoever runs or waits is to notice.
            self.shared.bells.kick_others(self.vcpu.id);
        }
        next
    }

    fn about_to_run(&mut self, now: u64) {
        self.now = now;
    }

    fn woken(&mut self) {
        let mut domain = self.shared.lock();
        let mut cx = PvContext { domain: &mut domain, vcpu: &mut self.vcpu };
        if !cx.domain.console.input.is_empty() {
            hypercall::service_console(&mut cx);
        }
        hypercall::service_devices(&mut cx);
        self.shared.note_end(&domain, self.vcpu.id);
    }

    fn witness(&mut self) -> Option<Witness> {
        if self.vcpu.state == RunState::Offline {
            return None;
        }
        // A walk notes that pages were accessed, in entries that must be entries still.
        let domain = self.shared.lock();
        let guest = GuestMemory::new(&self.shared.memory, self.vcpu.space.root());
        let testimony = testimony::of(&domain, &self.vcpu);
        Some(Witness::new(testimony, &mut |va| guest.read(GuestPtr::new(va)).ok()))
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.vcpu.ledger
    }

    fn inspect(&mut self) -> Option<&mut dyn Inspect> {
        Some(self)
    }
}

/// Does what an exit means.
fn handle(cx: &mut PvContext<'_>, exit: Exit) -> Handled {
    match exit {
        Exit::Hypercall if cx.vcpu.kernel_mode => {
            let length = cx.domain.facts.call_length;
            hypercall(cx, length)
        }
        // No engine lets a user program do this.
        Exit::Hypercall => refused(cx),
        Exit::Syscall if cx.vcpu.kernel_mode => hypercall(cx, SYSCALL_LENGTH),
        Exit::Syscall => user_syscall(cx),
        Exit::Fault(fault) => {
            let ExceptionOutcome { cause, mark } = crate::pv::fixup::handle(cx, fault);
            Handled { cause, mark }
        }
        Exit::Kick => Cause::Kick.into(),
        Exit::Port { .. }
        | Exit::Mmio { .. }
        | Exit::Halt
        | Exit::Window
        | Exit::Priority
        | Exit::Shutdown => {
            cx.kill(Exit::NOT_AT_CPL_3);
            Cause::Dead.into()
        }
        Exit::Dead(why) => {
            cx.kill(why);
            Cause::Dead.into()
        }
    }
}

/// Fires the timers that are due, takes what others left, delivers what is pending, and says what to do next.
fn prepare(cx: &mut PvContext<'_>) -> Next {
    if cx.domain.end.is_some() {
        return Next::End;
    }
    cx.take_left();
    cx.go_up_or_down();
    if next_deadline(cx).is_some_and(|t| t <= cx.domain.clock.now()) {
        expire_timers(cx);
        if cx.domain.end.is_some() {
            return Next::End;
        }
    }
    match cx.vcpu.state {
        RunState::Running => {}
        RunState::Blocked if cx.upcall_due() || cx.vcpu.nmi.pending => cx.run_again(),
        RunState::Polling if poll_is_over(cx) => {
            cx.vcpu.timers.set_poll(None);
            cx.run_again();
        }
        RunState::Polling => return Next::Wait(next_deadline(cx)),
        RunState::Blocked | RunState::Offline => {
            cx.domain.bells.end_poll(cx.vcpu.id);
            return Next::Wait(next_deadline(cx));
        }
    }
    cx.domain.bells.end_poll(cx.vcpu.id);
    cx.check_rip();
    cx.deliver_nmi();
    cx.deliver_upcall();
    if cx.domain.end.is_some() { Next::End } else { Next::Run(next_deadline(cx)) }
}

/// The number, as the ledger counts it: what is beyond its table is counted as the last.
fn ledger_number(rax: u64) -> u8 {
    u8::try_from(rax).map_or(63, |n| n.min(63))
}

fn hypercall(cx: &mut PvContext<'_>, entered_by: u64) -> Handled {
    let cause = Cause::Hypercall(ledger_number(cx.vcpu.regs.rax));
    // On Xen every call is a SYSCALL.
    cx.vcpu.regs.selectors.flatten();
    hypercall::perform(cx.reborrow(), entered_by);
    cause.into()
}

/// When a timer or a watchdog is next due. A vCPU that is down has no timers: they fire when it is up again.
fn next_deadline(cx: &PvContext<'_>) -> Option<u64> {
    let timers = cx.vcpu.timers.next().filter(|_| cx.vcpu.state != RunState::Offline);
    [timers, cx.domain.watchdogs.next()].into_iter().flatten().min()
}

fn expire_timers(cx: &mut PvContext<'_>) {
    let now = cx.domain.clock.now();
    let is_down = cx.vcpu.state == RunState::Offline;
    let due = if is_down { Due::default() } else { cx.vcpu.timers.expire(now) };
    if cx.domain.watchdogs.have_expired(now) {
        cx.domain.end.get_or_insert(DomainEnd::Watchdog);
    }
    if due.timer
        && let Some(port) = cx.domain.events.virq_port(VIRQ_TIMER, cx.vcpu.id)
        && let Err(e) = cx.raise(port)
    {
        cx.kill(e);
    }
    if due.poll && cx.vcpu.state == RunState::Polling {
        cx.run_again();
    }
}

/// Whether a poll is over: a port is pending, or was and has been cleared since, or an upcall or an NMI could be
/// delivered.
fn poll_is_over(cx: &PvContext<'_>) -> bool {
    let pending = |&port: &u32| cx.domain.bells.is_pending(port) == Ok(true);
    cx.upcall_due()
        || cx.vcpu.nmi.pending
        || cx.domain.bells.poll_has_ended(cx.vcpu.id)
        || cx.vcpu.polled.ports().iter().any(pending)
}

/// A SYSCALL of a user program: entered in the kernel's handler; without one, an undefined instruction.
fn user_syscall(cx: &mut PvContext<'_>) -> Handled {
    let callback = cx.vcpu.syscall;
    if callback.address == 0 {
        cx.vcpu.regs.rip = cx.vcpu.regs.rip.wrapping_sub(SYSCALL_LENGTH);
        cx.deliver_fault(Fault { vector: TRAP_INVALID_OP, error_code: 0, address: 0 });
    } else {
        // SYSCALL forgets the selectors; Xen makes them flat.
        cx.vcpu.regs.selectors.flatten();
        cx.enter_handler(callback, &[]);
    }
    Cause::Syscall.into()
}

fn refused(cx: &mut PvContext<'_>) -> Handled {
    cx.deliver_fault(Fault { vector: TRAP_GP_FAULT, error_code: 0, address: 0 });
    Cause::GuestFault { vector: TRAP_GP_FAULT }.into()
}

#[cfg(test)]
mod tests;
