//! From a decoded instruction to the operation that executes it.

use iced_x86::Instruction;

use super::core::ZERO;
use super::op::{NOWHERE, Op, general};
use super::outside::Machine;

impl<X: Machine> Op<X> {
    /// One without operands, in its general form.
    pub fn plain(offset: usize, length: u8) -> Self {
        Self {
            run: general,
            value: 0,
            other: 0,
            offset: u16::try_from(offset).unwrap_or(0),
            length,
            link: NOWHERE,
            to: 0,
            from: 0,
            base: ZERO as u8,
            index: ZERO as u8,
            shift: 0,
            segment: ZERO as u8,
            on_stack: false,
        }
    }
}

/// The operation of an instruction at this offset of its page.
pub(super) fn lower<X: Machine>(insn: &Instruction, offset: usize) -> Op<X> {
    let length = if insn.is_invalid() { 15 } else { insn.len() as u8 };
    Op::plain(offset, length)
}
