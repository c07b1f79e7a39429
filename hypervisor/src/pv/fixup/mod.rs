//! What is done for a paravirtual kernel's exceptions before the kernel hears of them.
//!
//! A kernel written for Xen asks by hypercalls, and still executes a few privileged instructions that Xen
//! completes for it. What is not completed here is the guest's own exception, unchanged. One file per kind:
//!
//! | exception | what is completed | where |
//! | --- | --- | --- |
//! | #UD | CPUID behind the emulation prefix | `cpuid.rs` |
//! | #UD | XSAVE and its kin, which Xen always allows | `privileged.rs` |
//! | #UD, #GP | INT n, where the host does not deliver it | `interrupt.rs` |
//! | #GP | loads of segment registers that the host's tables refuse and the guest's allow | `segment.rs` |
//! | #GP | port I/O: nothing is there | `port.rs` |
//! | #GP | RDMSR and WRMSR of the few that a domU has | `msr.rs` |
//! | #GP | CLI, STI, CLTS, WBINVD, MOV CR, MOV DR, XSETBV, CPUID | `privileged.rs` |
//! | #PF | a kernel's store to an L1 table, when it asked for that | `page_table.rs` |
//! | #PF | a load from the machine-to-physical table at Xen's address | `m2p.rs` |
//!
//! Which instructions those are, and what each does, was learnt from Xen's behaviour towards a domU (4.17).
//! What may not be done here: naming an engine, trusting anything that the guest says, allocating.

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

use super::context::PvContext;
use crate::ledger::Cause;
use crate::x86::exception::Fault;

/// Handles an exception: completes the instruction, or lets the guest have it.
pub fn handle(cx: &mut PvContext<'_>, fault: Fault) -> ExceptionOutcome {
    let outcome = match fault.vector {
        // What is there would be decoded as 64-bit code.
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

/// Whether the guest is in 64-bit mode, as far as the engine knows: it can go to 32-bit code by itself, and that is not
/// supported.
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
