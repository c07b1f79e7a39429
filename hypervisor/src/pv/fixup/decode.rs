//! Fetching and decoding the instruction at RIP.

use iced_x86::Instruction;

use crate::pv::domain::PvDomain;
use crate::x86::decode::{Dialect, instruction_at};

/// The instruction at `va`; `None` where the guest's memory holds none.
pub(super) fn at(d: &PvDomain, va: u64) -> Option<Instruction> {
    in_dialect(d, va, Dialect::Intel)
}

/// The instruction at RIP.
pub(super) fn at_rip(d: &PvDomain) -> Option<Instruction> {
    at(d, d.vcpu.regs.rip)
}

/// The instruction at `va`, as processors of this kind read it.
pub(super) fn in_dialect(d: &PvDomain, va: u64, dialect: Dialect) -> Option<Instruction> {
    instruction_at(va, dialect, |va, buf| d.read_guest(va, buf).ok())
}
