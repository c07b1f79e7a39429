//! One exit, from what the engine says to what the monitor does next.

use super::access::{Rights, Trap};
use super::deliver::Origin;
use super::exception::{Death, Stop};
use super::instruction::{Next, always_traps};
use super::{BareOutcome, Handled};
use crate::bare::platform::PlatformEvent;
use crate::engine::Exit;
use crate::ledger::{Cause, PortDevice};
use crate::machine::end::DomainEnd;
use crate::x86::debug::DR6_SINGLE_STEP;
use crate::x86::exception::{Exception, Fault, vector};
use crate::x86::rflags;

impl Trap<'_> {
    /// Handles one exit.
    pub fn handle(&mut self, exit: Exit) -> Handled {
        match exit {
            Exit::Kick => Handled { cause: Cause::Kick, outcome: BareOutcome::Resume },
            Exit::Dead(why) => {
                Handled { cause: Cause::Dead, outcome: BareOutcome::Ended(DomainEnd::Killed(why.into())) }
            }
            Exit::Hypercall => self.hypercall(),
            Exit::Syscall => {
                self.executes();
                let result = self.syscall().map(|()| Next::Jumped);
                self.finish(Cause::Syscall, result, self.regs.rip)
            }
            Exit::Fault(fault) if fault.vector == vector::PAGE => match self.page_fault(fault) {
                Ok(cause) => Handled { cause, outcome: BareOutcome::Resume },
                Err(stop) => self.finish(own(fault), Err(stop), self.regs.rip),
            },
            Exit::Fault(fault) => {
                self.executes();
                self.fault(fault)
            }
        }
    }

    /// An instruction at RIP had its effect, or its fault.
    fn executes(&mut self) {
        self.history.progressed(self.regs.rip);
        self.cpu.shadowed_rip = None;
    }

    /// An exception other than a page fault: a privileged instruction, or the guest's own business.
    fn fault(&mut self, fault: Fault) -> Handled {
        let may_be_privileged =
            matches!(fault.vector, vector::UNDEFINED | vector::NOT_PRESENT..=vector::PROTECTION);
        if may_be_privileged
            && let Some(insn) = self.decode()
            && let Some((cause, result)) = self.privileged_instruction(&insn)
        {
            return self.finish(cause, result, insn.next_ip());
        }
        if fault.vector == vector::BREAKPOINT {
            // INT3 is a trap: RIP is after it, and the gate's DPL counts.
            return self.finish(own(fault), Ok(Next::Interrupt(fault.vector)), self.regs.rip);
        }
        if fault.vector == vector::DEBUG && self.regs.rflags & rflags::TF != 0 {
            self.note_single_step();
        }
        let exception = Exception { address: 0, ..fault.into() };
        self.finish(own(fault), Err(exception.into()), self.regs.rip)
    }

    /// The port that enters the hypervisor for a paravirtual kernel is nobody's on this machine; RIP is after
    /// the OUT.
    fn hypercall(&mut self) -> Handled {
        self.executes();
        let cause = Cause::PortOut(PortDevice::Other);
        let next = self.regs.rip;
        if self.cpu.may_do_io() {
            return self.finish(cause, Ok(Next::Advance), next);
        }
        let with_immediate = self.read_value(next.wrapping_sub(2), 1, Rights::Current);
        let length = if matches!(with_immediate, Ok(0xe6 | 0xe7)) { 2 } else { 1 };
        self.regs.rip = next.wrapping_sub(length);
        self.finish(cause, Err(Exception::protection(0).into()), next)
    }

    /// Ends the instruction at RIP, after which `next` comes.
    fn finish(&mut self, cause: Cause, result: Result<Next, Stop>, next: u64) -> Handled {
        let outcome = self.conclude(result, next).unwrap_or_else(|death| BareOutcome::Ended(killed(death)));
        Handled { cause, outcome }
    }

    fn conclude(&mut self, result: Result<Next, Stop>, next: u64) -> Result<BareOutcome, Death> {
        match result {
            Ok(Next::Advance) => self.advance(next)?,
            Ok(Next::Jumped | Next::Again) => {}
            Ok(Next::Halt) => {
                self.advance(next)?;
                return Ok(self.halt());
            }
            Ok(Next::Event(event, ended)) => {
                if ended {
                    self.advance(next)?;
                }
                return Ok(outcome_of(event));
            }
            Ok(Next::Interrupt(number)) => {
                let event = Exception::plain(number);
                self.deliver(event, Origin::Software { next_rip: next })?;
            }
            Err(Stop::Exception(exception)) => self.raise(exception)?,
            Err(Stop::Dead(death)) => return Err(death),
        }
        Ok(BareOutcome::Resume)
    }

    /// Goes on at `next`, by way of the single step's #DB if that is on.
    pub fn advance(&mut self, next: u64) -> Result<(), Death> {
        self.regs.rip = next;
        self.regs.rflags &= !rflags::RF;
        if self.regs.rflags & rflags::TF == 0 {
            return Ok(());
        }
        self.note_single_step();
        self.raise(Exception::plain(vector::DEBUG))
    }

    fn note_single_step(&mut self) {
        let [.., dr6, _] = &mut self.cpu.debug;
        *dr6 |= DR6_SINGLE_STEP;
    }

    fn halt(&mut self) -> BareOutcome {
        if self.platform.poll(self.now_ns) {
            return BareOutcome::Resume;
        }
        self.cpu.halted = true;
        BareOutcome::Halted { until_ns: self.platform.next_deadline() }
    }

    /// Injects an interrupt if one waits and the guest takes it now; returns its vector.
    pub fn deliver_pending(&mut self) -> Result<Option<u8>, Death> {
        if !self.platform.poll(self.now_ns) || !self.cpu.interrupts || self.is_shadowed() {
            return Ok(None);
        }
        let number = self.platform.acknowledge();
        self.deliver(Exception::plain(number), Origin::External)?;
        Ok(Some(number))
    }

    /// Whether the instruction after STI has still to run before an interrupt.
    ///
    /// That is waited for only where that instruction surely traps (HLT, CLI ...), so that its end is heard of.
    /// Before any other one the interrupt comes at once, one instruction early.
    fn is_shadowed(&self) -> bool {
        self.cpu.shadowed_rip == Some(self.regs.rip) && self.decode().as_ref().is_some_and(always_traps)
    }
}

fn own(fault: Fault) -> Cause {
    Cause::GuestFault { vector: fault.vector }
}

/// The end of a guest that emulation cannot go on with.
pub(crate) fn killed(death: Death) -> DomainEnd {
    DomainEnd::Killed(death.to_string())
}

fn outcome_of(event: PlatformEvent) -> BareOutcome {
    match event {
        PlatformEvent::PowerOff => BareOutcome::Ended(DomainEnd::PowerOff),
        PlatformEvent::Reset => BareOutcome::Ended(DomainEnd::Reboot),
        PlatformEvent::GuestCrash => BareOutcome::Ended(DomainEnd::GuestCrash),
        PlatformEvent::Mark(value) => BareOutcome::Mark(value),
    }
}
