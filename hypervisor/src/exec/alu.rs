//! Integer arithmetic with its flags: what the emulated stores to memory compute.
//!
//! Results and flags per SDM vol. 2; operands are taken modulo their size.

use iced_x86::Mnemonic;

use super::operand::truncate;
use crate::x86::rflags;
use crate::x86::rflags::{AF, CF, OF, PF, SF, ZF};

/// A result and the status flags that go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub value: u64,
    /// Which flags are set by the operation...
    pub affected: u64,
    /// ...and to what.
    pub flags: u64,
}

impl Outcome {
    /// RFLAGS after the operation.
    pub fn apply(&self, flags: u64) -> u64 {
        flags & !self.affected | self.flags & self.affected
    }
}

const fn sign_bit(size: usize) -> u64 {
    if size >= 8 { 1 << 63 } else { 1 << (size * 8 - 1) }
}

/// ZF, SF and PF of a result.
fn of_result(value: u64, size: usize) -> u64 {
    let parity = if (value as u8).count_ones().is_multiple_of(2) { PF } else { 0 };
    let zero = if value == 0 { ZF } else { 0 };
    let sign = if value & sign_bit(size) != 0 { SF } else { 0 };
    parity | zero | sign
}

fn flag_if(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// What an instruction leaves in its destination, which holds `a`; `b` is its source, already extended.
///
/// `None` for one that is not known.
pub(crate) fn compute(mnemonic: Mnemonic, a: u64, b: u64, carry: bool, size: usize) -> Option<Outcome> {
    use Mnemonic::*;
    Some(match mnemonic {
        Mov | Movnti | Movzx | Movsx | Movsxd => plain(b),
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

/// Whether [`compute`] knows an instruction.
pub(crate) fn is_known(mnemonic: Mnemonic) -> bool {
    compute(mnemonic, 0, 0, false, 8).is_some()
}

/// `a + b + carry`.
pub(crate) fn add(a: u64, b: u64, carry: bool, size: usize) -> Outcome {
    let (a, b) = (truncate(a, size), truncate(b, size));
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let value = truncate(wide as u64, size);
    let overflow = (a ^ value) & (b ^ value) & sign_bit(size) != 0;
    let flags = of_result(value, size)
        | flag_if(wide >> (size * 8) != 0, CF)
        | flag_if(overflow, OF)
        | flag_if((a ^ b ^ value) & 0x10 != 0, AF);
    Outcome { value, affected: rflags::STATUS, flags }
}

/// `a - b - borrow`.
pub(crate) fn sub(a: u64, b: u64, borrow: bool, size: usize) -> Outcome {
    let (a, b) = (truncate(a, size), truncate(b, size));
    let value = truncate(a.wrapping_sub(b).wrapping_sub(borrow.into()), size);
    let overflow = (a ^ b) & (a ^ value) & sign_bit(size) != 0;
    let flags = of_result(value, size)
        | flag_if(u128::from(a) < u128::from(b) + u128::from(borrow), CF)
        | flag_if(overflow, OF)
        | flag_if((a ^ b ^ value) & 0x10 != 0, AF);
    Outcome { value, affected: rflags::STATUS, flags }
}

/// The result of AND, OR or XOR: CF and OF clear.
pub(crate) fn logic(value: u64, size: usize) -> Outcome {
    let value = truncate(value, size);
    Outcome { value, affected: rflags::STATUS, flags: of_result(value, size) }
}

/// INC and DEC leave CF alone.
pub(crate) fn keep_carry(outcome: Outcome) -> Outcome {
    Outcome { affected: outcome.affected & !CF, ..outcome }
}

/// BTS, BTR and BTC: `value` with CF set to what bit `bit` of `old` was.
pub(crate) fn bit(old: u64, value: u64, bit: u32) -> Outcome {
    Outcome { value, affected: CF, flags: old.checked_shr(bit).unwrap_or(0) & CF }
}

/// A move: no flags.
pub(crate) fn plain(value: u64) -> Outcome {
    Outcome { value, affected: 0, flags: 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::exec::alu::*;

    #[test]
    fn edges() {
        assert_eq!(
            add(0xff, 1, false, 1),
            Outcome { value: 0, affected: rflags::STATUS, flags: CF | ZF | PF | AF }
        );
        assert_eq!(add(0x7f, 0, true, 1).flags, OF | SF | AF);
        assert_eq!(sub(0, 1, false, 8).flags, CF | SF | PF | AF);
        assert_eq!(sub(0x8000, 1, false, 2).flags, OF | PF | AF);
        assert_eq!(sub(5, 4, true, 4).flags, ZF | PF);
        assert_eq!(logic(0, 4).flags, ZF | PF);
        assert_eq!(keep_carry(add(0xff, 1, false, 1)).apply(0), ZF | PF | AF);
        assert_eq!(bit(0b100, 0, 2).apply(ZF), CF | ZF);
    }

    proptest! {
        /// Against the types of the language.
        #[test]
        fn carries_and_overflows(a: u32, b: u32) {
            let (sum, carry) = a.overflowing_add(b);
            let signed = (a as i32).overflowing_add(b as i32).1;
            let got = add(a.into(), b.into(), false, 4);
            prop_assert_eq!((got.value, got.flags & CF != 0, got.flags & OF != 0), (sum.into(), carry, signed));
            let (difference, borrow) = a.overflowing_sub(b);
            let signed = (a as i32).overflowing_sub(b as i32).1;
            let got = sub(a.into(), b.into(), false, 4);
            prop_assert_eq!((got.value, got.flags & CF != 0, got.flags & OF != 0), (difference.into(), borrow, signed));
        }
    }
}
