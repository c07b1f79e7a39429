//! The bare machine's operations, by their instructions.

use crate::machine::primitive::{Primitive, smc};

use super::BareMmu;

mod faults;
mod registers;
mod tables;
mod user;

/// All of them.
pub const ALL: &[Primitive<BareMmu>] = &[
    user::SYSCALL,
    registers::IN,
    registers::CR8WR,
    faults::PGFAULT,
    faults::DIVZERO,
    tables::PTEMOD,
    tables::PTEMAP,
    registers::CLISTI,
    registers::CR3RD,
    registers::CR3WR,
    registers::IRET,
    smc(),
];
