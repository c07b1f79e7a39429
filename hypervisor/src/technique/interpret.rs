//! Interpretation: every instruction of a bare kernel, and of its user programs, is executed by [`crate::interpreter`].
//!
//! No engine is needed: neither KVM nor another process. `interpret-nocache` is the same without the cache of decoded
//! instructions, so that what the cache is worth can be seen.

use std::sync::Arc;

use super::{Domain, EngineNeed, MakeError, Parts, Runners, Technique, on_any_host};
use crate::bare::platform::Platform;
use crate::bare::platform::virtio_mmio::VirtioMmio;
use crate::bare::{BareBoot, BareOutcome, InterpretedMachine, Stopped};
use crate::engine::{Cpu, Exit};
use crate::image::GuestKind;
use crate::ledger::{Cause, Ledger, PortDevice, PrivOp, Work};
use crate::machine::end::DomainEnd;
use crate::machine::layout::OwnCode;
use crate::machine::memory::MachineMemory;
use crate::machine::time::Clock;
use crate::monitor::{Handled, Next, Runner};
use crate::virtio::Slot;
use crate::x86::registers::Regs;

/// The row of the table.
pub(super) const TECHNIQUE: Technique = Technique {
    name: "interpret",
    about: "interpretation: every instruction is executed in software, from a cache of decoded ones",
    runs: GuestKind::Bare,
    engine: EngineNeed::Nothing,
    max_vcpus: 1,
    available: on_any_host,
    shadow_frames: |_| 0,
    own_code: OwnCode::NONE,
    own_frames: |_| 0,
    device_parameters: |count| (count != 0).then(|| VirtioMmio::parameters(count)),
    undebuggable: Some("its processor is software, which has no part for a debugger"),
    make: |parts| make(parts, true),
    restore: None,
};

/// The row of the variant without a cache.
pub(super) const WITHOUT_CACHE: Technique = Technique {
    name: "interpret-nocache",
    about: "interpretation without that cache: every instruction is decoded each time",
    make: |parts| make(parts, false),
    ..TECHNIQUE
};

/// A domain whose processor is software.
struct InterpretedDomain {
    memory: Arc<MachineMemory>,
    machine: InterpretedMachine,
    /// What the last entry ended with.
    outcome: Option<BareOutcome>,
    /// A copy for who asks for the registers.
    regs: Regs,
    clock: Clock,
    ledger: Ledger,
    end: Option<DomainEnd>,
}

fn make(parts: Parts<'_>, keeps: bool) -> Result<Box<dyn Domain>, MakeError> {
    let info = parts.machine.info();
    let clock = Clock::new(info.tsc_khz, info.tsc_offset);
    let boot = BareBoot {
        entry: parts.built.entry_rip,
        stack: parts.built.rsp,
        start_info: parts.built.rsi,
        cr3: parts.built.cr3,
    };
    let memory = Arc::new(parts.memory);
    let virtio = VirtioMmio::new(parts.devices, &memory, &parts.kick)?;
    let platform = Platform::new(parts.sink, parts.input).with_virtio(virtio);
    let machine = InterpretedMachine::new(&boot, platform, &memory, clock, keeps)?;
    let (regs, ledger) = (machine.regs(), Ledger::new());
    Ok(Box::new(InterpretedDomain { memory, machine, outcome: None, regs, clock, ledger, end: None }))
}

impl Domain for InterpretedDomain {
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
}

impl Runner for InterpretedDomain {
    fn regs(&self) -> &Regs {
        &self.regs
    }

    fn memory(&self) -> &MachineMemory {
        &self.memory
    }

    fn enter(&mut self, cpu: &mut dyn Cpu) -> Exit {
        let stopped = self.machine.run(|| cpu.take_kick());
        self.regs = self.machine.regs();
        let [instructions, privileged, decoded] = self.machine.take_counts();
        self.ledger.work(Work::Interpreted, instructions);
        self.ledger.work(Work::InterpretedPrivileged, privileged);
        self.ledger.work(Work::Decoded, decoded);
        match stopped {
            Stopped::Called => Exit::Kick,
            Stopped::Outcome(outcome) => {
                self.outcome = Some(outcome);
                Exit::Halt
            }
        }
    }

    fn handle(&mut self, _: Exit) -> Handled {
        match self.outcome.take() {
            None | Some(BareOutcome::Resume) => Cause::Kick.into(),
            Some(BareOutcome::Halted { .. }) => Cause::PrivilegedInstruction(PrivOp::Hlt).into(),
            Some(BareOutcome::Mark(value)) => {
                Handled { cause: Cause::PortOut(PortDevice::Mark), mark: Some(value) }
            }
            Some(BareOutcome::Ended(end)) => {
                let cause = match end {
                    DomainEnd::Killed(_) => Cause::Dead,
                    _ => Cause::PortOut(PortDevice::Power),
                };
                self.end = Some(end);
                cause.into()
            }
        }
    }

    fn prepare(&mut self) -> Next {
        if self.end.is_some() {
            return Next::End;
        }
        // A running guest's devices are asked by the interpreter, when they are due.
        if self.machine.is_halted() { Next::Wait(self.machine.next_deadline()) } else { Next::Run(None) }
    }

    /// Its PC has no clock that tells the date.
    fn about_to_run(&mut self, _: u64) {}

    /// Input is polled at each entry.
    fn woken(&mut self) {}

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }
}
