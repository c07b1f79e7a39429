//! What the exits of a bare guest mean: `emulate` knows; this is the loop's view of it.

use std::sync::Arc;

use crate::bare::platform::Platform;
use crate::bare::platform::virtio_mmio::VirtioMmio;
use crate::bare::{BareBoot, BareMachine, BareOutcome};
use crate::engine::Exit;
use crate::launch::start::{RunError, World};
use crate::ledger::Ledger;
use crate::machine::end::DomainEnd;
use crate::machine::memory::MachineMemory;
use crate::machine::time::Clock;
use crate::mmu::log::TableLog;
use crate::mmu::shadow;
use crate::mmu::space::VcpuSpace;
use crate::monitor::vcpu_loop::{Guest, Handled, Next};
use crate::virtio::Slot;
use crate::x86::registers::Regs;

/// Shadow tables for a guest of `frames`.
pub fn shadow_frames(frames: u64) -> u64 {
    shadow::frames_for(frames)
}

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

impl World<'_> {
    pub(crate) fn bare(self) -> Result<BareDomain, RunError> {
        let info = self.machine.info();
        let mut log = TableLog::default();
        let mut space = VcpuSpace::new(self.built.root, &log);
        let boot = BareBoot {
            entry: self.built.entry_rip,
            stack: self.built.rsp,
            start_info: self.built.rsi,
            cr3: self.built.cr3,
        };
        let memory = Arc::new(self.memory);
        let virtio = VirtioMmio::new(self.devices, &memory, &self.kick)?;
        let platform = Platform::new(self.sink, self.input).with_virtio(virtio);
        let reserved = self.machine.reserved_l4_entries();
        let (machine, regs) =
            BareMachine::new(&boot, self.layout.shadow, reserved, platform, &memory, &mut log, &mut space)?;
        // Nothing has run yet: no translation can be stale.
        space.caught_up(&log);
        Ok(BareDomain {
            memory,
            machine,
            regs,
            log,
            space,
            clock: Clock::new(info.tsc_khz, info.tsc_offset),
            ledger: Ledger::new(),
            end: None,
        })
    }
}

impl Guest for BareDomain {
    fn context(&mut self) -> (&mut Regs, &mut VcpuSpace, &TableLog, &MachineMemory) {
        (&mut self.regs, &mut self.space, &self.log, &self.memory)
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

    fn interrupt(&mut self) {
        self.end.get_or_insert(DomainEnd::Interrupted);
    }

    fn clock(&self) -> Clock {
        self.clock
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    fn into_ledger(self: Box<Self>) -> Ledger {
        self.ledger
    }

    fn end(&self) -> DomainEnd {
        self.end.clone().unwrap_or(DomainEnd::Interrupted)
    }

    fn slots(&self) -> Vec<&Slot> {
        self.machine.slots()
    }
}
