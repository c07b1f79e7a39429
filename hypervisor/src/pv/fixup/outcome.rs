//! What a paravirtual guest's exception turned out to be, and how the instruction that raised it ends.

use iced_x86::Instruction;
use paravane_abi::trap::{TRAP_DEBUG, TRAP_GP_FAULT, TRAP_INVALID_OP};

use crate::ledger::Cause;
use crate::pv::context::PvContext;
use crate::x86::exception::Fault;
use crate::x86::rflags;

/// What an exception turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExceptionOutcome {
    /// For the ledger.
    pub cause: Cause,
    /// The mark, if the guest set one.
    pub mark: Option<u8>,
}

impl From<Cause> for ExceptionOutcome {
    fn from(cause: Cause) -> Self {
        Self { cause, mark: None }
    }
}

/// How an instruction that is completed here ends.
pub(super) enum Ended {
    /// It is done: execution goes on at the next instruction.
    Done,
    /// It is not finished, and is executed again: it is repeated, or the hypervisor was interrupted.
    Again,
    /// It raises this in place of the exception that brought it here.
    Fault(Fault),
}

/// #GP with error code 0.
pub(super) const PROTECTION: Fault = Fault { vector: TRAP_GP_FAULT, error_code: 0, address: 0 };
/// #UD.
pub(super) const UNDEFINED: Fault = Fault { vector: TRAP_INVALID_OP, error_code: 0, address: 0 };

/// Ends an instruction as the processor would.
pub(super) fn finish(cx: &mut PvContext<'_>, insn: &Instruction, ended: Ended) {
    finish_with(cx, insn, ended, 0);
}

/// As [`finish`], for an instruction that hit `breakpoints`, given as bits of DR6.
pub(super) fn finish_with(cx: &mut PvContext<'_>, insn: &Instruction, ended: Ended, breakpoints: u64) {
    match ended {
        Ended::Done => {
            cx.vcpu.regs.rip = insn.next_ip();
            cx.vcpu.regs.rflags &= !rflags::RF;
            cx.vcpu.debug.status |= breakpoints;
            if breakpoints != 0 || cx.vcpu.regs.rflags & rflags::TF != 0 {
                cx.deliver_fault(Fault { vector: TRAP_DEBUG, error_code: 0, address: 0 });
            }
        }
        Ended::Again => {}
        Ended::Fault(fault) => cx.deliver_fault(fault),
    }
}
