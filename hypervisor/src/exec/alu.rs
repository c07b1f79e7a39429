//! Integer arithmetic with its flags.
//!
//! Results and flags per SDM vol. 2; operands are taken modulo their size.

use iced_x86::{ConditionCode, Mnemonic};

use super::operand::truncate;
use super::status::{self, Status};
use crate::x86::rflags;
use crate::x86::rflags::CF;

pub(crate) mod bits;
pub(crate) mod product;
pub(crate) mod shift;

/// A result and the status flags that go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Computed {
    pub value: u64,
    /// The flags that the operation sets.
    pub affected: u64,
    /// Their new values.
    pub flags: u64,
}

impl Computed {
    /// RFLAGS after the operation.
    pub fn apply(&self, flags: u64) -> u64 {
        flags & !self.affected | self.flags & self.affected
    }
}

pub(super) const fn sign_bit(size: usize) -> u64 {
    if size >= 8 { 1 << 63 } else { 1 << (size * 8 - 1) }
}

pub(super) fn flag_if(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// A result on `size` bytes that sets all status flags.
pub(super) fn with_status((value, status): (u64, Status), size: usize) -> Computed {
    Computed { value: truncate(value, size), affected: rflags::STATUS, flags: status.bits() }
}

/// What an instruction leaves in a destination that holds `a`; `b` is its source, extended to the same size.
///
/// `None` for an instruction that is not implemented here.
pub(crate) fn compute(mnemonic: Mnemonic, a: u64, b: u64, carry: bool, size: usize) -> Option<Computed> {
    use Mnemonic::*;
    Some(match mnemonic {
        _ if is_move(mnemonic) => plain(b),
        Add => add(a, b, false, size),
        Adc => add(a, b, carry, size),
        Sub | Cmp => sub(a, b, false, size),
        Sbb => sub(a, b, carry, size),
        And | Test => logic(a & b, size),
        Or => logic(a | b, size),
        Xor => logic(a ^ b, size),
        Inc => keep_carry(add(a, 1, false, size)),
        Dec => keep_carry(sub(a, 1, false, size)),
        Neg => sub(0, a, false, size),
        Not => plain(!a),
        _ => return None,
    })
}

/// Whether [`compute`] implements an instruction.
pub(crate) fn is_known(mnemonic: Mnemonic) -> bool {
    compute(mnemonic, 0, 0, false, 8).is_some()
}

/// `a + b + carry`.
pub(crate) fn add(a: u64, b: u64, carry: bool, size: usize) -> Computed {
    with_status(status::add(a, b, carry, size), size)
}

/// `a - b - borrow`.
pub(crate) fn sub(a: u64, b: u64, borrow: bool, size: usize) -> Computed {
    with_status(status::sub(a, b, borrow, size), size)
}

/// The result of AND, OR or XOR: CF and OF clear.
pub(crate) fn logic(value: u64, size: usize) -> Computed {
    with_status((value, Status::logic(value, size)), size)
}

/// The result of INC or DEC, which do not change CF.
fn keep_carry(computed: Computed) -> Computed {
    Computed { affected: computed.affected & !CF, ..computed }
}

/// Whether an instruction only copies its source, without reading its destination.
pub(crate) fn is_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Mov | Movnti | Movzx | Movsx | Movsxd)
}

/// Whether an instruction sign-extends its source.
pub(crate) fn extends_sign(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Movsx | Mnemonic::Movsxd)
}

/// What BTS, BTR and BTC leave of `old`, whose bit `number` they change.
pub(crate) fn change_bit(mnemonic: Mnemonic, old: u64, number: u32) -> Computed {
    let mask = 1u64.checked_shl(number).unwrap_or(0);
    let value = match mnemonic {
        Mnemonic::Bts => old | mask,
        Mnemonic::Btr => old & !mask,
        _ => old ^ mask,
    };
    bit(old, value, number)
}

/// `value`, with CF as bit `bit` of `old`: BT and its kin.
pub(crate) fn bit(old: u64, value: u64, bit: u32) -> Computed {
    Computed { value, affected: CF, flags: old.checked_shr(bit).unwrap_or(0) & CF }
}

/// Whether a condition holds; `None` for an instruction without one.
pub(crate) fn holds(condition: ConditionCode, flags: u64) -> Option<bool> {
    Status::from_bits(flags).holds(condition)
}

/// A move: no flags.
pub(crate) fn plain(value: u64) -> Computed {
    Computed { value, affected: 0, flags: 0 }
}

#[cfg(test)]
mod tests;
