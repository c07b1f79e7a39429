//! Fetching and decoding the instruction at RIP.

use iced_x86::Instruction;

use crate::pv::context::PvContext;
use crate::x86::decode::{Dialect, instruction_at};

/// The instruction at `va`; `None` where the guest's memory holds none.
pub(super) fn at(cx: &PvContext<'_>, va: u64) -> Option<Instruction> {
    in_dialect(cx, va, Dialect::Intel)
}

/// The instruction at RIP.
pub(super) fn at_rip(cx: &PvContext<'_>) -> Option<Instruction> {
    at(cx, cx.vcpu.regs.rip)
}

/// The instruction at `va`, as processors of this kind read it.
pub(super) fn in_dialect(cx: &PvContext<'_>, va: u64, dialect: Dialect) -> Option<Instruction> {
    instruction_at(va, dialect, |va, buf| cx.guest().read_bytes(va, buf).ok())
}
