//! Instructions of a paravirtual kernel that trap: what is done for it, and what it hears of.

mod instructions;
mod m2p;
mod page_tables;
mod segments;
mod xsa;

use paravane_abi::trap::{TI_IF, TRAP_GP_FAULT, TRAP_INVALID_OP};

use super::{ExceptionOutcome, handle};
use crate::ledger::Cause;
use crate::testing::pv::{FREE, STACK, TestDomain, va};
use crate::x86::exception::Fault;

/// PFN of the page that code is put into.
const CODE: u64 = FREE;
/// Linear address of the code.
const RIP: u64 = va(CODE) + 0x100;
/// Where handlers are: vector N's is N bytes on.
const HANDLERS: u64 = va(FREE + 1);

const GP: Fault = Fault { vector: TRAP_GP_FAULT, error_code: 0, address: 0 };
const UD: Fault = Fault { vector: TRAP_INVALID_OP, error_code: 0, address: 0 };

/// A kernel with a handler for every exception and an IOPL of 1.
fn domain() -> TestDomain {
    let mut t = TestDomain::new();
    for vector in 0..20 {
        t.handle(vector, HANDLERS + u64::from(vector), TI_IF);
    }
    t.vcpu.io.level = 1;
    t
}

/// Code that raised `fault`.
fn execute(t: &mut TestDomain, code: &[u8], fault: Fault) -> ExceptionOutcome {
    t.guest().write_bytes(RIP, code).unwrap();
    t.vcpu.regs.rip = RIP;
    t.vcpu.regs.rsp = va(STACK + 1);
    let emulated = handle(&mut t.cx(), fault);
    assert_eq!(t.end, None);
    emulated
}

/// Code that must be completed.
fn completes(t: &mut TestDomain, code: &[u8], fault: Fault) -> Cause {
    let emulated = execute(t, code, fault);
    assert_eq!(t.vcpu.regs.rip, RIP + code.len() as u64, "{code:02x?} is completed");
    emulated.cause
}

/// Code whose exception must reach the guest; the vector, and the words of the frame from the error code or
/// RIP on.
fn raises(t: &mut TestDomain, code: &[u8], fault: Fault) -> (u64, [u64; 3]) {
    let before = t.vcpu.regs;
    execute(t, code, fault);
    let after = t.vcpu.regs;
    assert_eq!((after.rax, after.rcx, after.rdx), (before.rax, before.rcx, before.rdx), "nothing was done");
    let vector = after.rip.wrapping_sub(HANDLERS);
    assert!(vector < 32, "{code:02x?} reached no handler: rip {:#x}", after.rip);
    let [_, _, words @ ..] = t.read_at::<[u64; 5]>(after.rsp).unwrap();
    (vector, words)
}

/// Code that must be refused with #GP(0) at itself.
fn is_refused(t: &mut TestDomain, code: &[u8]) {
    let (vector, [error_code, rip, _]) = raises(t, code, GP);
    assert_eq!((vector, error_code, rip), (13, 0, RIP), "{code:02x?}");
}
