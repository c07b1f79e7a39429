//! The paravirtual machine's operations: what the bare one's instructions are for, asked of the hypervisor.
//!
//! A kernel that asks does not read a port or CR3 and has no task priority, so those are missing; what it has instead
//! are the hypercalls themselves and the upcall.

use crate::machine::primitive::{Primitive, smc};

use super::PvMmu;

mod faults;
mod hypercalls;
mod interrupts;
mod tables;
mod user;

/// All of them.
pub const ALL: &[Primitive<PvMmu>] = &[
    user::SYSCALL,
    faults::PGFAULT,
    faults::DIVZERO,
    tables::PTEMOD,
    tables::PTEMAP,
    interrupts::CLISTI,
    tables::CR3WR,
    interrupts::IRET,
    smc(),
    hypercalls::NULL,
    hypercalls::UPDATE_1,
    hypercalls::UPDATE_512,
    interrupts::UPCALL,
];

/// What was refused is a bug of this kernel.
#[track_caller]
fn done<T>(outcome: Result<T, paravane_guest::abi::Errno>) -> T {
    match outcome {
        Ok(value) => value,
        Err(errno) => panic!("the hypervisor refused a nanobenchmark's call: {errno}"),
    }
}
