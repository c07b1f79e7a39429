//! Hardware virtualization: a bare kernel at CPL 0, on a processor that makes that safe.
//!
//! Nothing of the kernel is emulated: its privileged instructions, page tables and exceptions are the processor's
//! business. The PC around it is the same as for every other technique ([`crate::bare::platform`]); what leaves the
//! guest is an access to one of its devices, HLT, or the moment at which it takes an interrupt. The variant
//! [`WITH_IRQCHIP`] leaves interrupt controllers, timer and HLT to the host's kernel.
//!
//! What may not be done here: allocating on an exit, or trusting a value of the guest.

use std::sync::Arc;

use shadow::Shadow;

use super::{Domain, EngineNeed, MakeError, Parts, Runners, Technique};
use crate::bare::platform::virtio_mmio::{Level, VirtioMmio};
use crate::bare::platform::{Platform, PlatformEvent};
use crate::bare::{BareOutcome, halted_for_ever, outcome_of};
use crate::engine::kvm::ring0;
use crate::engine::{Cpu, Exit, Irqchip, Ring0};
use crate::image::GuestKind;
use crate::ledger::{Cause, Ledger, PrivOp};
use crate::machine::end::DomainEnd;
use crate::machine::layout::OwnCode;
use crate::machine::memory::MachineMemory;
use crate::machine::time::Clock;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::monitor::{Handled, Next, Runner};
use crate::virtio::Slot;
use crate::x86::registers::Regs;
use crate::x86::rflags;

mod shadow;

/// The most bytes that one access transfers (KVM API documentation, KVM_EXIT_IO: a page).
const MAX_BYTES: usize = 4096;

/// The row of the table.
pub(super) const TECHNIQUE: Technique = Technique {
    name: "hvm",
    about: "hardware virtualization: the kernel at ring 0; its devices trip",
    runs: GuestKind::Bare,
    engine: EngineNeed::Ring0(Irqchip::Monitor),
    max_vcpus: 1,
    available: ring0::available,
    shadow_frames: |_| 0,
    own_code: OwnCode::NONE,
    own_frames: |_| 0,
    device_parameters: |count| (count != 0).then(|| VirtioMmio::parameters(count)),
    undebuggable: Some("the kernel's exceptions, a debugger's among them, do not leave the guest"),
    make: |parts| make(parts, Irqchip::Monitor),
    restore: None,
};

/// The row of the variant.
pub(super) const WITH_IRQCHIP: Technique = Technique {
    name: "hvm-irqchip",
    about: "hardware virtualization, with the host kernel's interrupt controllers and timer",
    engine: EngineNeed::Ring0(Irqchip::Kernel),
    max_vcpus: 1,
    make: |parts| make(parts, Irqchip::Kernel),
    ..TECHNIQUE
};

/// The bytes of a device access on their way between guest and device.
struct Transfer {
    bytes: Box<[u8; MAX_BYTES]>,
    /// How many of them.
    len: usize,
    /// They are what the guest reads, and it has not had them yet.
    answers: bool,
}

/// The domain, and its one virtual CPU.
struct HvmGuest {
    memory: Arc<MachineMemory>,
    platform: Platform,
    irqchip: Irqchip,
    regs: Regs,
    /// Until the first entry: where its L4 table is.
    start: Option<u64>,
    halted: bool,
    shadow: Shadow,
    transfer: Transfer,
    clock: Clock,
    ledger: Ledger,
    end: Option<DomainEnd>,
    // The processor walks the guest's own tables: nothing is ever written into these.
    log: TableLog,
    space: VcpuSpace,
}

fn make(parts: Parts<'_>, irqchip: Irqchip) -> Result<Box<dyn Domain>, MakeError> {
    let info = parts.machine.info();
    let memory = Arc::new(parts.memory);
    let virtio = VirtioMmio::new(parts.devices, &memory, &parts.kick)?;
    let log = TableLog::default();
    let space = VcpuSpace::new(parts.built.root, &log);
    let regs = Regs {
        rip: parts.built.entry_rip,
        rsp: parts.built.rsp,
        rsi: parts.built.rsi,
        rflags: rflags::FIXED,
        ..Regs::default()
    };
    Ok(Box::new(HvmGuest {
        memory,
        platform: Platform::new(parts.sink, parts.input).with_virtio(virtio),
        irqchip,
        regs,
        start: Some(parts.built.cr3),
        halted: false,
        shadow: Shadow::None,
        transfer: Transfer { bytes: Box::new([0; MAX_BYTES]), len: 0, answers: false },
        clock: Clock::new(info.tsc_khz, info.tsc_offset),
        ledger: Ledger::new(),
        end: None,
        log,
        space,
    }))
}

impl HvmGuest {
    /// What the guest is to find at its next entry: the answer to what it read, and an interrupt.
    fn before_entry(&mut self, cpu: &mut dyn Ring0) -> Result<(), &'static str> {
        if let Some(cr3) = self.start.take() {
            cpu.start(cr3)?;
        }
        if std::mem::take(&mut self.transfer.answers) {
            cpu.answer(self.transfer.bytes.get(..self.transfer.len).unwrap_or_default());
        }
        match self.irqchip {
            Irqchip::Monitor => self.interrupt(cpu),
            Irqchip::Kernel => self.set_lines(cpu),
        }
    }

    /// Gives it the interrupt that is pending, or asks to hear when it takes one.
    fn interrupt(&mut self, cpu: &mut dyn Ring0) -> Result<(), &'static str> {
        let now = self.clock.now();
        let mut pending = self.platform.poll(now) && !self.shadow.holds_back();
        if pending && cpu.takes_interrupts() {
            cpu.interrupt(self.platform.acknowledge())?;
            pending = self.platform.poll(now);
        }
        cpu.request_window(pending);
        Ok(())
    }

    /// Sets the lines of the devices that are ours.
    fn set_lines(&mut self, cpu: &mut dyn Ring0) -> Result<(), &'static str> {
        for (line, level) in self.platform.lines() {
            if level == Level::Risen {
                cpu.set_line(line, false)?;
            }
            cpu.set_line(line, level != Level::Low)?;
        }
        Ok(())
    }

    /// Takes over what the guest wrote, if that is why it left.
    fn after_exit(&mut self, exit: Exit, cpu: &mut dyn Ring0) {
        self.shadow = self.shadow.after(exit, self.regs.rip, cpu.in_shadow());
        if let Exit::Port { write: true, .. } | Exit::Mmio { write: true, .. } = exit {
            let written = cpu.written();
            self.transfer.len = written.len().min(MAX_BYTES);
            for (to, from) in self.transfer.bytes.iter_mut().zip(written) {
                *to = *from;
            }
        }
    }

    /// Moves the elements of a port access; what an output requests of the monitor, if anything.
    fn port(&mut self, port: u16, size: u8, bytes: usize, write: bool) -> Option<PlatformEvent> {
        let now = self.clock.now();
        let Self { transfer, platform, .. } = self;
        transfer.len = bytes.min(MAX_BYTES);
        let data = transfer.bytes.get_mut(..transfer.len).unwrap_or_default();
        transfer.answers = !write;
        for element in data.chunks_mut(usize::from(size.clamp(1, 4))) {
            let mut value = [0; 4];
            if write {
                for (to, from) in value.iter_mut().zip(&*element) {
                    *to = *from;
                }
                let event = platform.port_out(port, size, u32::from_le_bytes(value), now);
                if event.is_some() {
                    return event;
                }
            } else {
                let value = platform.port_in(port, size, now).to_le_bytes();
                for (to, from) in element.iter_mut().zip(value) {
                    *to = from;
                }
            }
        }
        None
    }

    fn mmio(&mut self, address: u64, bytes: usize, write: bool) -> Cause {
        let Self { transfer, platform, .. } = self;
        transfer.len = bytes.min(MAX_BYTES);
        let data = transfer.bytes.get_mut(..transfer.len).unwrap_or_default();
        transfer.answers = !write;
        if write {
            platform.memory_out(address, data);
        } else {
            platform.memory_in(address, data);
        }
        Cause::Mmio(platform.memory_owner(address, write))
    }

    fn halt(&mut self) -> Cause {
        if self.regs.rflags & rflags::IF == 0 {
            const HLT_LENGTH: u64 = 1;
            self.end = Some(halted_for_ever(self.regs.rip.wrapping_sub(HLT_LENGTH)));
        }
        self.halted = true;
        Cause::PrivilegedInstruction(PrivOp::Hlt)
    }

    fn dies(&mut self, why: impl Into<String>) -> Cause {
        self.end = Some(DomainEnd::Killed(why.into()));
        Cause::Dead
    }
}

impl Domain for HvmGuest {
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
        look(&self.platform.slots());
    }

    fn into_ledger(self: Box<Self>) -> Ledger {
        self.ledger
    }
}

impl Runner for HvmGuest {
    fn regs(&self) -> &Regs {
        &self.regs
    }

    fn memory(&self) -> &MachineMemory {
        &self.memory
    }

    fn enter(&mut self, cpu: &mut dyn Cpu) -> Exit {
        let Some(ring0) = cpu.ring0() else {
            return Exit::Dead("the engine cannot run a kernel at CPL 0; this is a bug in Paravane");
        };
        if let Err(why) = self.before_entry(ring0) {
            return Exit::Dead(why);
        }
        let exit = cpu.catch_up_and_enter(&mut self.regs, &mut self.space, &self.log, &self.memory);
        if let Some(ring0) = cpu.ring0() {
            self.after_exit(exit, ring0);
        }
        exit
    }

    fn handle(&mut self, exit: Exit) -> Handled {
        let cause = match exit {
            Exit::Port { port, size, bytes, write } => {
                let owner = Platform::owner(port);
                let cause = if write { Cause::PortOut(owner) } else { Cause::PortIn(owner) };
                let mut mark = None;
                match self.port(port, size, bytes, write).map(outcome_of) {
                    Some(BareOutcome::Mark(value)) => mark = Some(value),
                    Some(BareOutcome::Ended(end)) => self.end = Some(end),
                    None | Some(BareOutcome::Resume | BareOutcome::Halted { .. }) => {}
                }
                return Handled { cause, mark };
            }
            Exit::Mmio { address, bytes, write } => self.mmio(address, bytes, write),
            Exit::Halt => self.halt(),
            Exit::Window => Cause::InterruptWindow,
            Exit::Priority => Cause::PrivilegedInstruction(PrivOp::MovToCr),
            Exit::Kick => Cause::Kick,
            Exit::Shutdown => self.dies(triple_fault(self.regs.rip)),
            Exit::Dead(why) => self.dies(why),
            Exit::Hypercall | Exit::Syscall | Exit::Fault(_) => self
                .dies("the engine reports an exit that code at CPL 0 cannot make; this is a bug in Paravane"),
        };
        cause.into()
    }

    fn prepare(&mut self) -> Next {
        if self.end.is_some() {
            return Next::End;
        }
        if self.irqchip == Irqchip::Kernel {
            return Next::Run(None);
        }
        // What is pending is given to it at the entry. Before that, HLT waits for it.
        let now = self.clock.now();
        self.halted &= !self.platform.poll(now);
        let mut deadline = self.platform.next_deadline();
        if self.shadow.holds_back() {
            deadline = Some(now.saturating_add(Shadow::HOLD_NS));
        }
        if self.halted { Next::Wait(deadline) } else { Next::Run(deadline) }
    }

    /// Its PC has no clock that tells the date.
    fn about_to_run(&mut self, _: u64) {}

    /// Input is polled before each entry.
    fn woken(&mut self) {}

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }
}

/// KVM does not say which exception it was, and on some processors RIP is lost: it is then where the guest was last
/// entered.
fn triple_fault(rip: u64) -> String {
    format!(
        "triple fault, at rip {rip:#x} or after: an exception could not be delivered, nor could the double fault; check \
         the IDT, its handlers' segments and the stack"
    )
}

#[cfg(test)]
mod tests;
