//! A virtual CPU's runner with a debugger in between.
//!
//! It does what the [session](super::session)'s order says, and is otherwise not there. Standing, it tells the loop
//! that the guest waits: errands wake it, are done in [`Runner::enter`], where the engine's part of the virtual CPU is
//! at hand, and count as a kick. Stepping, it holds back what would be delivered to the guest: a user who steps through
//! a function is not to end up in an interrupt handler. What was held back is delivered when the guest runs on.

use std::sync::Arc;

use super::hardware::Watched;
use super::memory;
use super::session::{Order, Session, Why};
use super::step::{self, Step};
use crate::autopsy::Witness;
use crate::engine::{Cpu, Exit};
use crate::ledger::{Cause, Ledger};
use crate::machine::memory::MachineMemory;
use crate::monitor::inspect::Inspect;
use crate::monitor::{Handled, Next, Runner};
use crate::x86::exception::vector;
use crate::x86::registers::Regs;

/// How many exits are remembered.
const KEPT: usize = 64;
/// How often an instruction that has not gone on is tried again before the guest's state is looked at: what the host
/// fills in first (a shadow's tables) takes one exit for each level, of two pages.
const TRIES: u32 = 16;

/// An exit that was handled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Past {
    pub cause: Cause,
    pub rip: u64,
}

/// The last exits.
#[derive(Debug)]
pub(super) struct Recent {
    ring: [Option<Past>; KEPT],
    next: usize,
}

impl Recent {
    fn push(&mut self, past: Past) {
        if let Some(slot) = self.ring.get_mut(self.next) {
            *slot = Some(past);
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// From the last one back.
    pub fn backwards(&self) -> impl Iterator<Item = Past> {
        let (new, old) = self.ring.split_at(self.next);
        new.iter().rev().chain(old.iter().rev()).copied().flatten()
    }
}

/// A virtual CPU that stands.
pub(super) struct Standing<'a> {
    pub runner: &'a mut dyn Runner,
    pub cpu: &'a mut dyn Cpu,
    pub recent: &'a Recent,
}

/// A runner that may be sent to another thread, or one that may not.
pub trait AnyRunner: Runner {
    /// Itself.
    fn as_runner(&mut self) -> &mut dyn Runner;
}

impl AnyRunner for dyn Runner + '_ {
    fn as_runner(&mut self) -> &mut dyn Runner {
        self
    }
}

impl AnyRunner for dyn Runner + Send + '_ {
    fn as_runner(&mut self) -> &mut dyn Runner {
        self
    }
}

/// A virtual CPU's runner, and the debugger's orders for it.
pub struct Debugged<'a, R: AnyRunner + ?Sized> {
    inner: &'a mut R,
    session: Arc<Session>,
    id: usize,
    /// The order that the loop was last given an answer for.
    answered: Order,
    /// The runner said that the guest is to run, and nothing has happened to it since.
    is_ready: bool,
    /// The last exit was none of the guest's.
    was_ours: bool,
    /// The runner has not been told of a kick.
    missed: bool,
    /// What was met in a debug register, by the exit that is to be handled.
    met: Option<Watched>,
    /// The step whose exit is to be handled.
    step: Option<Step>,
    /// It is done, once the guest is to run again.
    is_done: bool,
    tries: u32,
    /// The debugger was told that the domain ends.
    told_end: bool,
    recent: Recent,
}

impl<'a, R: AnyRunner + ?Sized> Debugged<'a, R> {
    /// The virtual CPU number `id`.
    pub fn new(inner: &'a mut R, session: Arc<Session>, id: usize) -> Self {
        Self {
            inner,
            session,
            id,
            answered: Order::Stand,
            is_ready: false,
            was_ours: false,
            missed: false,
            met: None,
            step: None,
            is_done: false,
            tries: 0,
            told_end: false,
            recent: Recent { ring: [None; KEPT], next: 0 },
        }
    }

    fn serve(&mut self, cpu: &mut dyn Cpu) {
        let before = *self.inner.regs();
        let standing = &mut Standing { runner: self.inner.as_runner(), cpu, recent: &self.recent };
        self.session.serve(self.id, standing);
        if *self.inner.regs() != before {
            self.is_ready = false;
        }
    }

    fn prepare_guest(&mut self) -> Next {
        if std::mem::take(&mut self.missed) {
            self.inner.woken();
        }
        let next = self.inner.prepare();
        self.is_ready = matches!(next, Next::Run(_));
        let is_news =
            next == Next::End && self.session.is_attached() && !std::mem::replace(&mut self.told_end, true);
        let why = self.inner.inspect().filter(|_| is_news).and_then(|inspect| inspect.bad_end());
        if let Some(why) = why {
            self.session.stop(self.id, Why::Ends(why));
            return self.prepare();
        }
        next
    }

    fn prepare_step(&mut self) -> Next {
        if self.is_ready && !self.is_done {
            return Next::Run(None);
        }
        let next = self.prepare_guest();
        if matches!(next, Next::Run(_)) && self.is_done && self.answered == Order::Step {
            self.stepped();
            return self.prepare();
        }
        next
    }

    /// A step is done; in a range that is to be stepped through, the next one begins.
    fn stepped(&mut self) {
        self.is_done = false;
        let rip = self.inner.regs().rip;
        if !self.session.within(self.id).is_some_and(|range| range.contains(&rip)) {
            self.session.stop(self.id, Why::Stepped);
        }
    }

    /// Whether the exit is an INT3 of ours; RIP is then at it.
    fn meets_breakpoint(&mut self, exit: Exit) -> bool {
        if !matches!(exit, Exit::Fault(fault) if fault.vector == vector::BREAKPOINT) {
            return false;
        }
        let va = self.inner.regs().rip.wrapping_sub(1);
        let Some(at) = memory::translate(self.inner.as_runner(), va) else { return false };
        let ours = self.session.with_breakpoints(|breakpoints| breakpoints.has(at));
        if let Some(inspect) = self.inner.inspect().filter(|_| ours) {
            inspect.regs_mut().rip = va;
        }
        ours
    }

    fn handle_guests(&mut self, exit: Exit) -> Handled {
        let rip = self.inner.regs().rip;
        let handled = self.inner.handle(exit);
        self.recent.push(Past { cause: handled.cause, rip });
        self.is_ready = false;
        handled
    }

    /// The exit that a step ended with.
    fn handle_step(&mut self, step: Step, exit: Exit) -> Handled {
        match exit {
            Exit::Kick => Cause::Kick.into(),
            Exit::Fault(fault) if fault.vector == vector::DEBUG && !step.theirs => {
                self.stepped();
                Cause::GuestFault { vector: fault.vector }.into()
            }
            _ => {
                let handled = self.handle_guests(exit);
                self.is_done = self.inner.regs().rip != step.from;
                self.tries = if self.is_done { 0 } else { self.tries + 1 };
                // The instruction has yet to be executed: nothing comes in between, for as long as that is plausible.
                self.is_ready = !self.is_done && !self.tries.is_multiple_of(TRIES);
                handled
            }
        }
    }
}

impl<R: AnyRunner + ?Sized> Runner for Debugged<'_, R> {
    fn regs(&self) -> &Regs {
        self.inner.regs()
    }

    fn memory(&self) -> &MachineMemory {
        self.inner.memory()
    }

    fn begin(&mut self, cpu: &mut dyn Cpu) {
        self.inner.begin(cpu);
    }

    fn save(&mut self, cpu: &mut dyn Cpu) {
        self.inner.save(cpu);
    }

    fn witness(&mut self) -> Option<Witness> {
        self.inner.witness()
    }

    fn place(&mut self, exit: Exit) -> u64 {
        if self.was_ours { self.inner.regs().rip } else { self.inner.place(exit) }
    }

    fn enter(&mut self, cpu: &mut dyn Cpu) -> Exit {
        let order = self.session.order(self.id);
        self.was_ours = order != self.answered || order == Order::Stand;
        if self.was_ours {
            self.serve(cpu);
            return Exit::Kick;
        }
        let exit = if order == Order::Run {
            self.inner.enter(cpu)
        } else {
            let (step, exit) = step::enter(self.inner.as_runner(), cpu);
            self.step = Some(step);
            exit
        };
        if matches!(exit, Exit::Fault(fault) if fault.vector == vector::DEBUG)
            && let Some(hardware) = self.session.hardware()
        {
            self.met = hardware.met(cpu.take_debug_status());
        }
        exit
    }

    fn handle(&mut self, exit: Exit) -> Handled {
        let step = self.step.take();
        if std::mem::take(&mut self.was_ours) {
            return Cause::Kick.into();
        }
        if self.meets_breakpoint(exit) {
            self.session.stop(self.id, Why::Breakpoint);
            return Cause::GuestFault { vector: vector::BREAKPOINT }.into();
        }
        if let Some(watched) = self.met.take() {
            self.session.stop(self.id, Why::Watched(watched));
            return Cause::GuestFault { vector: vector::DEBUG }.into();
        }
        match step {
            Some(step) => self.handle_step(step, exit),
            None => self.handle_guests(exit),
        }
    }

    fn prepare(&mut self) -> Next {
        self.answered = self.session.order(self.id);
        match self.answered {
            Order::Run => self.prepare_guest(),
            Order::Step => self.prepare_step(),
            Order::Stand if self.session.is_wanted(self.id) => Next::Run(None),
            Order::Stand => Next::Wait(None),
        }
    }

    fn about_to_run(&mut self, now: u64) {
        self.inner.about_to_run(now);
    }

    /// Nothing happens to a guest that stands.
    fn woken(&mut self) {
        match self.session.order(self.id) {
            Order::Run => self.inner.woken(),
            Order::Stand | Order::Step => self.missed = true,
        }
    }

    fn ledger(&mut self) -> &mut Ledger {
        self.inner.ledger()
    }

    fn inspect(&mut self) -> Option<&mut dyn Inspect> {
        self.inner.inspect()
    }
}
