//! A domain whose kernel believes that it owns a PC, and runs at CPL 3. The PC is in [`crate::bare`].
//!
//! What may not be done here: knowing how a [`Method`] works.

mod inspect;

use std::sync::Arc;

use super::method::{Guest, Left, Method};
use super::{Domain, MakeError, Parts, Runners};
use crate::autopsy::{Testimony, Witness};
use crate::bare::platform::Platform;
use crate::bare::platform::virtio_mmio::VirtioMmio;
use crate::bare::{BareBoot, BareMachine, BareOutcome};
use crate::engine::{Cpu, Exit};
use crate::ledger::{Arrival, Ledger};
use crate::machine::end::DomainEnd;
use crate::machine::memory::MachineMemory;
use crate::machine::time::Clock;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::monitor::inspect::Inspect;
use crate::monitor::{Handled, Next, Runner};
use crate::virtio::Slot;
use crate::x86::registers::Regs;

/// The domain, and its one virtual CPU.
pub(super) struct BareDomain<M> {
    method: M,
    memory: Arc<MachineMemory>,
    machine: BareMachine,
    regs: Regs,
    log: TableLog,
    space: VcpuSpace,
    clock: Clock,
    ledger: Ledger,
    /// What the last exit was, if somebody wanted to know its place before it is handled.
    left: Option<Left>,
    end: Option<DomainEnd>,
}

impl<M: Method + 'static> BareDomain<M> {
    /// Makes the domain.
    pub fn make(parts: Parts<'_>, method: M) -> Result<Box<dyn Domain>, MakeError> {
        let info = parts.machine.info();
        let mut log = TableLog::default();
        let mut space = VcpuSpace::new(parts.built.root, &log);
        let boot = BareBoot {
            entry: parts.built.entry_rip,
            stack: parts.built.rsp,
            start_info: parts.built.rsi,
            cr3: parts.built.cr3,
        };
        let memory = Arc::new(parts.memory);
        let virtio = VirtioMmio::new(parts.devices, &memory, &parts.kick)?;
        let platform = Platform::new(parts.sink, parts.input).with_virtio(virtio);
        let reserved = parts.machine.reserved_l4_entries();
        let (machine, regs) =
            BareMachine::new(&boot, parts.layout.shadow, reserved, platform, &memory, &mut log, &mut space)?;
        // Nothing has run yet: no translation can be stale.
        space.caught_up(&log);
        let clock = Clock::new(info.tsc_khz, info.tsc_offset);
        let ledger = Ledger::with_sites();
        Ok(Box::new(Self { method, memory, machine, regs, log, space, clock, ledger, left: None, end: None }))
    }
}

impl<M> BareDomain<M> {
    fn testimony(&self) -> Testimony {
        Testimony { regs: self.regs, doing: self.machine.doing(), ..Testimony::default() }
    }
}

/// The method, and the guest that it works on.
fn split<M>(domain: &mut BareDomain<M>) -> (&mut M, Guest<'_>) {
    let BareDomain { method, memory, machine, regs, log, space, ledger, .. } = domain;
    (method, Guest { machine, regs, memory, log, space, ledger })
}

impl<M: Method> Domain for BareDomain<M> {
    fn runners(&mut self) -> Runners<'_> {
        Runners { boot: self, others: Vec::new() }
    }

    fn last(&self) -> Regs {
        self.regs
    }

    fn clock(&self) -> Clock {
        self.clock
    }

    fn end(&self) -> DomainEnd {
        self.end.clone().unwrap_or(DomainEnd::Interrupted)
    }

    fn with_slots(&self, look: &mut dyn FnMut(&[&Slot])) {
        look(&self.machine.slots());
    }

    fn into_ledger(self: Box<Self>) -> Ledger {
        self.ledger
    }

    fn testimonies(&mut self) -> Vec<Testimony> {
        vec![self.testimony()]
    }

    fn peek(&mut self, _: u32, va: u64) -> Option<u64> {
        self.machine.peek(&self.memory, va)
    }
}

impl<M: Method> Runner for BareDomain<M> {
    fn regs(&self) -> &Regs {
        &self.regs
    }

    fn memory(&self) -> &MachineMemory {
        &self.memory
    }

    fn enter(&mut self, cpu: &mut dyn Cpu) -> Exit {
        let (method, mut guest) = split(self);
        method.before_entry(&mut guest);
        cpu.catch_up_and_enter(&mut self.regs, &mut self.space, &self.log, &self.memory)
    }

    /// RIP is the guest's own once the method has seen the exit.
    fn place(&mut self, exit: Exit) -> u64 {
        let (method, mut guest) = split(self);
        let left = method.after_exit(exit, &mut guest);
        self.left = Some(left);
        self.regs.rip
    }

    fn handle(&mut self, exit: Exit) -> Handled {
        let left = self.left.take().unwrap_or_else(|| {
            let (method, mut guest) = split(self);
            method.after_exit(exit, &mut guest)
        });
        let now = self.clock.now();
        let Self { machine, regs, memory, log, space, .. } = self;
        let rip = regs.rip;
        let arrival = if matches!(left, Left::Callout) { Arrival::Call } else { Arrival::Trap };
        let handled = match left {
            Left::Exit(exit) => {
                let handled = machine.handle_exit(regs, exit, memory, log, space, now);
                let (method, mut guest) = split(self);
                method.handled(rip, exit, handled.cause, &mut guest);
                handled
            }
            Left::Callout => machine.execute_here(regs, memory, log, space, now),
            Left::Own(cause) => return cause.into(),
        };
        self.ledger.site(rip, handled.cause, arrival);
        let mut mark = None;
        match handled.outcome {
            BareOutcome::Resume | BareOutcome::Halted { .. } => {}
            BareOutcome::Mark(value) => mark = Some(value),
            BareOutcome::Ended(end) => self.end = Some(end),
        }
        Handled { cause: handled.cause, mark }
    }

    fn prepare(&mut self) -> Next {
        if self.end.is_some() {
            return Next::End;
        }
        let now = self.clock.now();
        let pending =
            self.machine.deliver_pending(&mut self.regs, &self.memory, &mut self.log, &mut self.space, now);
        if let Err(end) = pending {
            self.end = Some(end);
            return Next::End;
        }
        let deadline = self.machine.next_deadline(M::NOTICES_STI);
        if self.machine.is_halted() { Next::Wait(deadline) } else { Next::Run(deadline) }
    }

    /// Its PC has no clock that tells the date.
    fn about_to_run(&mut self, _: u64) {}

    /// Input is polled before each entry.
    fn woken(&mut self) {}

    fn witness(&mut self) -> Option<Witness> {
        Some(Witness::new(self.testimony(), &mut |va| self.machine.peek(&self.memory, va)))
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    fn inspect(&mut self) -> Option<&mut dyn Inspect> {
        if M::RUNS_THE_KERNELS_CODE { Some(self) } else { None }
    }
}
