//! Trap-and-emulate: a bare kernel at CPL 3, whose privileged instructions trap and are emulated by [`crate::bare`].

use std::sync::Arc;

use super::{Domain, MakeError, Parts, Technique, on_any_host};
use crate::bare::platform::Platform;
use crate::bare::platform::virtio_mmio::VirtioMmio;
use crate::bare::{BareBoot, BareMachine, BareOutcome};
use crate::engine::Exit;
use crate::image::GuestKind;
use crate::ledger::Ledger;
use crate::machine::end::DomainEnd;
use crate::machine::memory::MachineMemory;
use crate::machine::time::Clock;
use crate::mmu::log::TableLog;
use crate::mmu::shadow;
use crate::mmu::space::VcpuSpace;
use crate::monitor::{Context, Handled, Next, Runner};
use crate::virtio::Slot;
use crate::x86::registers::Regs;

/// The row of the table.
pub(super) const TECHNIQUE: Technique = Technique {
    name: "trap",
    about: "trap-and-emulate: the kernel trips, instruction by instruction",
    runs: GuestKind::Bare,
    available: on_any_host,
    shadow_frames: shadow::frames_for,
    // The machine-to-physical table stays empty; the tables that map it are written.
    own_frames: |layout| (layout.m2p.end - layout.m2p.start).div_ceil(512),
    device_parameters: |count| (count != 0).then(|| VirtioMmio::parameters(count)),
    make,
};

/// A domain whose kernel believes that it owns a PC.
pub struct BareDomain {
    memory: Arc<MachineMemory>,
    machine: BareMachine,
    regs: Regs,
    log: TableLog,
    space: VcpuSpace,
    clock: Clock,
    ledger: Ledger,
    end: Option<DomainEnd>,
}

/// Makes the domain.
fn make(parts: Parts<'_>) -> Result<Box<dyn Domain>, MakeError> {
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
    Ok(Box::new(BareDomain {
        memory,
        machine,
        regs,
        log,
        space,
        clock: Clock::new(info.tsc_khz, info.tsc_offset),
        ledger: Ledger::new(),
        end: None,
    }))
}

impl Domain for BareDomain {
    fn runner(&mut self) -> &mut dyn Runner {
        self
    }

    fn clock(&self) -> Clock {
        self.clock
    }

    fn end(&self) -> DomainEnd {
        self.end.clone().unwrap_or(DomainEnd::Interrupted)
    }

    fn slots(&self) -> Vec<&Slot> {
        self.machine.slots()
    }

    fn into_ledger(self: Box<Self>) -> Ledger {
        self.ledger
    }
}

impl Runner for BareDomain {
    fn context(&mut self) -> Context<'_> {
        Context { regs: &mut self.regs, space: &mut self.space, log: &self.log, memory: &self.memory }
    }

    fn handle(&mut self, exit: Exit) -> Handled {
        let now = self.clock.now();
        let handled =
            self.machine.handle_exit(&mut self.regs, exit, &self.memory, &mut self.log, &mut self.space, now);
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
        let deadline = self.machine.next_deadline();
        if self.machine.is_halted() { Next::Wait(deadline) } else { Next::Run(deadline) }
    }

    /// Its PC has no clock that tells the date.
    fn about_to_run(&mut self, _: u64) {}

    /// Input is polled before each entry.
    fn woken(&mut self) {}

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }
}
