//! Handles a paravirtual guest's exceptions before its kernel gets them.
//!
//! A kernel written for Xen uses hypercalls, but still executes a few privileged instructions, which Xen completes for
//! it. All other exceptions are delivered to the guest unchanged. One file for each kind:
//!
//! | exception | what is completed | where |
//! | --- | --- | --- |
//! | #UD | CPUID behind the emulation prefix | `cpuid.rs` |
//! | #UD | XSAVE and its kin, which Xen always allows | `privileged.rs` |
//! | #UD, #GP | INT n, where the host does not deliver it | `interrupt.rs` |
//! | #GP | loads of segment registers that the host's tables refuse and the guest's allow | `segment.rs` |
//! | #GP | port I/O, to ports without devices | `port.rs` |
//! | #GP | RDMSR and WRMSR of the registers that a domU has | `msr.rs` |
//! | #GP | CLI, STI, CLTS, WBINVD, MOV CR, MOV DR, XSETBV, CPUID | `privileged.rs` |
//! | #PF | a kernel's store to an L1 table, where it has enabled that | `page_table.rs` |
//! | #PF | a load from the machine-to-physical table at Xen's address | `m2p.rs` |
//!
//! Which instructions these are, and what each does, follows Xen 4.17's behaviour towards a domU. Everything here runs
//! on the vCPU's thread, and nothing is called from a signal handler. What may not be done here: naming an engine,
//! trusting a value of the guest, allocating.

mod cpuid;
mod decode;
mod interrupt;
mod m2p;
mod msr;
mod outcome;
mod page_table;
mod port;
mod privileged;
mod segment;
#[cfg(test)]
mod tests;

use paravane_abi::segment::FLAT_KERNEL_CS;
use paravane_abi::trap::{TRAP_GP_FAULT, TRAP_INVALID_OP, TRAP_PAGE_FAULT};

pub use outcome::ExceptionOutcome;
use outcome::{finish, finish_with};
pub use privileged::state_a_guest_may_set;

use super::context::PvContext;
use crate::ledger::Cause;
use crate::x86::exception::Fault;

/// Handles an exception: completes the instruction, or delivers the exception to the guest.
pub fn handle(cx: &mut PvContext<'_>, fault: Fault) -> ExceptionOutcome {
    let outcome = match fault.vector {
        // 32-bit code would be decoded as 64-bit code.
        _ if !runs_64_bit_code(cx) => None,
        TRAP_INVALID_OP => cpuid::forced(cx)
            .or_else(|| interrupt::software(cx, fault))
            .or_else(|| privileged::extended_state(cx)),
        TRAP_GP_FAULT if fault.error_code == 0 => general_protection(cx),
        TRAP_GP_FAULT => interrupt::software(cx, fault).or_else(|| segment::load(cx)),
        TRAP_PAGE_FAULT => page_table::store(cx, fault).or_else(|| m2p::access(cx, fault)),
        _ => None,
    };
    outcome.unwrap_or_else(|| {
        cx.deliver_fault(fault);
        Cause::GuestFault { vector: fault.vector }.into()
    })
}

/// Whether the guest is in 64-bit mode, as far as the engine knows. It can enter 32-bit code without an exit, which is
/// not supported.
fn runs_64_bit_code(cx: &PvContext<'_>) -> bool {
    let cs = cx.vcpu.regs.selectors.cs;
    cs == FLAT_KERNEL_CS || cx.is_code_64(cs)
}

fn general_protection(cx: &mut PvContext<'_>) -> Option<ExceptionOutcome> {
    let insn = decode::at_rip(cx)?;
    let breakpoints = port::breakpoints(cx, &insn);
    if let Some((outcome, ended)) = port::access(cx, &insn) {
        finish_with(cx, &insn, ended, breakpoints);
        return Some(outcome);
    }
    let (op, ended) = privileged::instruction(cx, &insn)?;
    finish(cx, &insn, ended);
    Some(Cause::PrivilegedInstruction(op).into())
}
