//! Handles one exit: from what the engine reports to what the monitor does next.

use iced_x86::{Instruction, Mnemonic};

use super::bus::Bus;
use super::cause;
use super::death::Death;
use super::handler::ExitHandler;
use super::outcome::{BareExit, BareOutcome, killed, outcome_of};
use super::platform::PlatformEvent;
use crate::engine::Exit;
use crate::exec::deliver::Origin;
use crate::exec::outside::{Attempt, Incomplete};
use crate::exec::privileged::{Completion, always_traps};
use crate::ledger::{Cause, PortDevice};
use crate::machine::end::DomainEnd;
use crate::x86::exception::{Exception, Fault, vector};
use crate::x86::rflags;

/// The instruction does not exist.
const UNDEFINED: Fault = Fault { vector: vector::UNDEFINED, error_code: 0, address: 0 };

/// The result of executing an instruction.
type Completed<'a> = Attempt<Completion<PlatformEvent>, Bus<'a>>;

impl<'a> ExitHandler<'a> {
    /// Handles one exit.
    pub fn handle(&mut self, exit: Exit) -> BareExit {
        match exit {
            Exit::Kick => BareExit { cause: Cause::Kick, outcome: BareOutcome::Resume },
            Exit::Port { .. }
            | Exit::Mmio { .. }
            | Exit::Halt
            | Exit::Window
            | Exit::Priority
            | Exit::Shutdown => {
                let end = DomainEnd::Killed(Exit::NOT_AT_CPL_3.into());
                BareExit { cause: Cause::Dead, outcome: BareOutcome::Ended(end) }
            }
            Exit::Dead(why) => {
                BareExit { cause: Cause::Dead, outcome: BareOutcome::Ended(DomainEnd::Killed(why.into())) }
            }
            Exit::Hypercall => self.hypercall(),
            Exit::Syscall => {
                self.executes();
                let result = self.exec.syscall().map(|()| Completion::Jumped);
                self.finish(Cause::Syscall, result, self.exec.regs.rip)
            }
            Exit::Fault(fault) if fault.vector == vector::PAGE => match self.page_fault(fault) {
                Ok(cause) => BareExit { cause, outcome: BareOutcome::Resume },
                Err(incomplete) => self.finish(guests_own(fault), Err(incomplete), self.exec.regs.rip),
            },
            Exit::Fault(fault) => {
                self.executes();
                self.fault(fault)
            }
        }
    }

    /// Notes that the instruction at RIP completed or faulted.
    fn executes(&mut self) {
        self.history.progressed(self.exec.regs.rip);
        self.exec.cpu.shadowed_rip = None;
    }

    /// An exception other than a page fault: a privileged instruction, or one for the guest.
    fn fault(&mut self, fault: Fault) -> BareExit {
        let may_be_privileged =
            matches!(fault.vector, vector::UNDEFINED | vector::NOT_PRESENT..=vector::PROTECTION);
        if may_be_privileged
            && let Some(insn) = self.decode()
            && let Some((cause, result)) = self.privileged_instruction(&insn)
        {
            return self.finish(cause, result, insn.next_ip());
        }
        if fault.vector == vector::BREAKPOINT {
            // INT3 is a trap: RIP is after it, and the gate's DPL is checked.
            return self.finish(
                guests_own(fault),
                Ok(Completion::Interrupt(fault.vector)),
                self.exec.regs.rip,
            );
        }
        if fault.vector == vector::DEBUG && self.exec.regs.rflags & rflags::TF != 0 {
            self.exec.note_single_step();
        }
        let exception = Exception { address: 0, ..fault.into() };
        self.finish(guests_own(fault), Err(exception.into()), self.exec.regs.rip)
    }

    /// Executes the sensitive instruction at RIP, whether or not it would trap. HLT right after STI is executed with it:
    /// no interrupt comes between the two.
    pub fn execute_here(&mut self) -> BareExit {
        self.executes();
        let Some(insn) = self.decode() else { return self.fault(UNDEFINED) };
        if insn.mnemonic() == Mnemonic::Sti && self.exec.regs.rflags & rflags::TF == 0 {
            self.exec.cpu.interrupts = true;
            self.exec.cpu.shadowed_rip = Some(insn.next_ip());
            self.exec.regs.rip = insn.next_ip();
            if self.decode().is_some_and(|next| next.mnemonic() == Mnemonic::Hlt) {
                return self.execute_here();
            }
            return BareExit {
                cause: cause::of_instruction(&insn, self.exec.regs),
                outcome: BareOutcome::Resume,
            };
        }
        let cause = cause::of_instruction(&insn, self.exec.regs);
        let stepping = self.exec.regs.rflags & rflags::TF != 0;
        if let Some(result) = self.exec.inspect(&insn) {
            if result.is_ok() && matches!(insn.mnemonic(), Mnemonic::Popf | Mnemonic::Popfq) {
                return self.finish_flags(cause, insn.next_ip(), stepping);
            }
            return self.finish(cause, result.map(|()| Completion::Advance), insn.next_ip());
        }
        match self.privileged_instruction(&insn) {
            Some((cause, result)) => self.finish(cause, result, insn.next_ip()),
            None => self.fault(Fault { vector: vector::PROTECTION, ..UNDEFINED }),
        }
    }

    /// Finishes POPF: whether the step is trapped was decided before it loaded TF (SDM vol. 3, 17.3.1.4).
    fn finish_flags(&mut self, cause: Cause, next: u64, stepping: bool) -> BareExit {
        self.exec.regs.rip = next;
        let result = if stepping {
            self.exec.note_single_step();
            Err(Exception::plain(vector::DEBUG).into())
        } else {
            Ok(Completion::Jumped)
        };
        self.finish(cause, result, next)
    }

    /// Executes a privileged instruction; `None` where it is not implemented, or not allowed at this privilege level.
    fn privileged_instruction(&mut self, insn: &Instruction) -> Option<(Cause, Completed<'a>)> {
        let cause = cause::of_instruction(insn, self.exec.regs);
        self.exec.privileged(insn).map(|completed| (cause, completed))
    }

    /// An OUT to the port by which paravirtual kernels enter the hypervisor: on this machine no device has it. RIP is
    /// after the OUT.
    fn hypercall(&mut self) -> BareExit {
        self.executes();
        let cause = Cause::PortOut(PortDevice::Other);
        let next = self.exec.regs.rip;
        if self.exec.cpu.may_do_io() {
            return self.finish(cause, Ok(Completion::Advance), next);
        }
        let with_immediate = self.exec.operands().load(next.wrapping_sub(2), 1);
        let length = if matches!(with_immediate, Ok(0xe6 | 0xe7)) { 2 } else { 1 };
        self.exec.regs.rip = next.wrapping_sub(length);
        self.finish(cause, Err(Exception::protection(0).into()), next)
    }

    /// Finishes the instruction at RIP; the next one is at `next`.
    fn finish(&mut self, cause: Cause, result: Completed<'a>, next: u64) -> BareExit {
        let outcome = self.conclude(result, next).unwrap_or_else(|death| BareOutcome::Ended(killed(death)));
        BareExit { cause, outcome }
    }

    fn conclude(&mut self, result: Completed<'a>, next: u64) -> Result<BareOutcome, Death> {
        match result {
            Ok(Completion::Advance) => self.advance(next)?,
            Ok(Completion::Jumped | Completion::Again) => {}
            Ok(Completion::Halt) => {
                if !self.exec.cpu.interrupts {
                    return Err(Death::HaltedForEver { rip: self.exec.regs.rip });
                }
                self.advance(next)?;
                return Ok(self.halt());
            }
            Ok(Completion::Event { event, ended }) => {
                if ended {
                    self.advance(next)?;
                }
                return Ok(outcome_of(event));
            }
            Ok(Completion::Interrupt(number)) => {
                let event = Exception::plain(number);
                self.deliver(event, Origin::Software { next_rip: next })?;
            }
            Err(Incomplete::Exception(exception)) => self.deliver(exception, Origin::Exception)?,
            Err(Incomplete::Machine(death)) => return Err(death),
        }
        Ok(BareOutcome::Resume)
    }

    fn halt(&mut self) -> BareOutcome {
        if self.exec.outside.platform.poll(self.exec.outside.now_ns) {
            return BareOutcome::Resume;
        }
        self.exec.cpu.halted = true;
        BareOutcome::Halted { until_ns: self.exec.outside.platform.next_deadline() }
    }

    /// Delivers a pending interrupt if the guest takes interrupts now; returns its vector.
    pub fn deliver_pending(&mut self) -> Result<Option<u8>, Death> {
        if !self.exec.outside.platform.poll(self.exec.outside.now_ns)
            || !self.exec.cpu.interrupts
            || self.is_shadowed()
        {
            return Ok(None);
        }
        let number = self.exec.outside.platform.acknowledge();
        self.deliver(Exception::plain(number), Origin::External)?;
        Ok(Some(number))
    }

    /// Whether the instruction after STI has still to run before an interrupt.
    ///
    /// Only where that instruction is certain to trap (HLT, CLI ...), because only then does an exit follow it. Before
    /// any other instruction the interrupt is delivered at once, one instruction early.
    fn is_shadowed(&self) -> bool {
        self.exec.cpu.shadowed_rip == Some(self.exec.regs.rip)
            && self.decode().as_ref().is_some_and(always_traps)
    }
}

/// The cause of an exit by an exception that the guest handles.
fn guests_own(fault: Fault) -> Cause {
    Cause::GuestFault { vector: fault.vector }
}
