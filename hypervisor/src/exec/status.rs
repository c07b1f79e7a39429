//! The status flags, kept as what they are computed from.
//!
//! An arithmetic instruction leaves its result and its carries; which flags these make is computed when somebody asks,
//! which for most instructions is never. Every combination of the six flags has such a form, so that there is no second
//! one: what POPF loads is turned into it.

use iced_x86::ConditionCode;

use crate::x86::rflags::{AF, CF, OF, PF, SF, ZF};

/// The bits of `carries`: out of the operand's sign bit, and into it.
const OUT: u64 = 1 << 63;
const INTO: u64 = 1 << 62;
/// Out of bit 3.
const HALF: u64 = 1 << 3;

/// CF, PF, AF, ZF, SF and OF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// ZF is set where this is 0.
    zero: u64,
    /// SF is its sign, PF the parity of its low byte.
    sign: u64,
    /// CF is bit 63, OF bit 63 unless equal to bit 62, AF bit 3.
    carries: u64,
}

impl Default for Status {
    fn default() -> Self {
        Self::from_bits(0)
    }
}

impl Status {
    /// Of an operation on `size` bytes, from its result and the carry (or borrow) out of each bit. Bits beyond the
    /// operand's size may have any value.
    #[inline(always)]
    pub const fn new(result: u64, carries: u64, size: usize) -> Self {
        let beyond = 64 - 8 * (size as u32);
        let result = ((result << beyond).cast_signed() >> beyond).cast_unsigned();
        let half = if beyond == 0 { 0 } else { carries & HALF };
        Self { zero: result, sign: result, carries: carries << beyond | half }
    }

    /// Of a logical operation: CF, OF and AF clear.
    #[inline(always)]
    pub const fn logic(result: u64, size: usize) -> Self {
        Self::new(result, 0, size)
    }

    /// Of a shift or product: with these CF and OF, and AF clear.
    #[inline(always)]
    pub const fn with_carry_and_overflow(result: u64, carry: bool, overflow: bool, size: usize) -> Self {
        let carries = if carry { OUT } else { 0 } | if carry != overflow { INTO } else { 0 };
        Self { carries, ..Self::new(result, 0, size) }
    }

    /// From bits of RFLAGS.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        let (carry, overflow) = (bits & CF != 0, bits & OF != 0);
        let sign = if bits & SF != 0 { 1 << 63 } else { 0 };
        Self {
            zero: if bits & ZF != 0 { 0 } else { 1 },
            sign: if bits & PF != 0 { sign } else { sign | 1 },
            carries: if carry { OUT } else { 0 }
                | if carry != overflow { INTO } else { 0 }
                | if bits & AF != 0 { HALF } else { 0 },
        }
    }

    /// As bits of RFLAGS; all others are 0.
    #[inline]
    pub const fn bits(self) -> u64 {
        const fn pick(set: bool, flag: u64) -> u64 {
            if set { flag } else { 0 }
        }
        pick(self.carry(), CF)
            | pick(self.parity(), PF)
            | pick(self.carries & HALF != 0, AF)
            | pick(self.is_zero(), ZF)
            | pick(self.negative(), SF)
            | pick(self.overflow(), OF)
    }

    /// CF.
    #[inline(always)]
    pub const fn carry(self) -> bool {
        self.carries & OUT != 0
    }
    /// ZF.
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.zero == 0
    }
    /// SF.
    #[inline(always)]
    pub const fn negative(self) -> bool {
        self.sign.cast_signed() < 0
    }
    /// OF.
    #[inline(always)]
    pub const fn overflow(self) -> bool {
        (self.carries ^ self.carries << 1).cast_signed() < 0
    }
    /// PF.
    #[inline(always)]
    pub const fn parity(self) -> bool {
        (self.sign & 0xff).count_ones() & 1 == 0
    }
    /// SF differs from OF.
    #[inline(always)]
    pub const fn less(self) -> bool {
        (self.sign ^ self.carries ^ self.carries << 1).cast_signed() < 0
    }

    /// After a rotation, which sets CF and OF and keeps the others.
    #[inline(always)]
    pub const fn rotated(self, carry: bool, overflow: bool) -> Self {
        let both = if carry { OUT } else { 0 } | if carry != overflow { INTO } else { 0 };
        Self { carries: self.carries & HALF | both, ..self }
    }

    /// The same with another CF.
    #[inline(always)]
    pub const fn with_carry(self, carry: bool) -> Self {
        // OF is the difference of both bits, and stays.
        let flip = if self.carry() == carry { 0 } else { OUT | INTO };
        Self { carries: self.carries ^ flip, ..self }
    }

    /// Whether a condition holds (SDM vol. 1, appendix B); `None` for an instruction without one.
    #[inline(always)]
    pub const fn holds(self, condition: ConditionCode) -> Option<bool> {
        Some(match condition {
            ConditionCode::None => return None,
            ConditionCode::o => self.overflow(),
            ConditionCode::no => !self.overflow(),
            ConditionCode::b => self.carry(),
            ConditionCode::ae => !self.carry(),
            ConditionCode::e => self.is_zero(),
            ConditionCode::ne => !self.is_zero(),
            ConditionCode::be => self.carry() || self.is_zero(),
            ConditionCode::a => !self.carry() && !self.is_zero(),
            ConditionCode::s => self.negative(),
            ConditionCode::ns => !self.negative(),
            ConditionCode::p => self.parity(),
            ConditionCode::np => !self.parity(),
            ConditionCode::l => self.less(),
            ConditionCode::ge => !self.less(),
            ConditionCode::le => self.less() || self.is_zero(),
            ConditionCode::g => !self.less() && !self.is_zero(),
        })
    }
}

/// `a + b + carry` on `size` bytes.
#[inline(always)]
pub(crate) fn add(a: u64, b: u64, carry: bool, size: usize) -> (u64, Status) {
    let sum = a.wrapping_add(b).wrapping_add(carry.into());
    (sum, Status::new(sum, (a & b) | ((a | b) & !sum), size))
}

/// `a - b - borrow` on `size` bytes.
#[inline(always)]
pub(crate) fn sub(a: u64, b: u64, borrow: bool, size: usize) -> (u64, Status) {
    let difference = a.wrapping_sub(b).wrapping_sub(borrow.into());
    (difference, Status::new(difference, (!a & b) | ((!a | b) & difference), size))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::x86::rflags::STATUS;

    #[test]
    fn every_combination_of_flags_has_its_form() {
        for n in 0..64u64 {
            let bits = [CF, PF, AF, ZF, SF, OF].iter().enumerate();
            let bits: u64 = bits.map(|(i, flag)| if n >> i & 1 != 0 { *flag } else { 0 }).sum();
            let status = Status::from_bits(bits);
            assert_eq!(status.bits(), bits);
            assert_eq!(status.with_carry(true).bits(), bits | CF);
            assert_eq!(status.with_carry(false).bits(), bits & !CF);
        }
    }

    proptest! {
        /// Against the definitions: CF by a wider sum, OF by the signs.
        #[test]
        fn sums_and_differences(a: u64, b: u64, carry: bool, log in 0u32..4) {
            let size = 1usize << log;
            let mask = u64::MAX >> (64 - 8 * size);
            let signed = |v: u64| i128::from(((v & mask) << (64 - 8 * size)).cast_signed() >> (64 - 8 * size));
            let (x, y, c) = (u128::from(a & mask), u128::from(b & mask), u128::from(carry));
            let expected = |wide: u128, exact: i128, half: bool| {
                let value = wide as u64 & mask;
                let mut bits = Status::logic(value, size).bits();
                bits |= if wide >> (8 * size) & 1 != 0 { CF } else { 0 };
                bits |= if signed(value) != exact { OF } else { 0 };
                bits | if half { AF } else { 0 }
            };
            let (sum, status) = add(a, b, carry, size);
            prop_assert_eq!(sum & mask, (x + y + c) as u64 & mask);
            let half = (x & 15) + (y & 15) + c > 15;
            prop_assert_eq!(status.bits(), expected(x + y + c, signed(a) + signed(b) + c as i128, half));
            let (difference, status) = sub(a, b, carry, size);
            let wide = x.wrapping_sub(y).wrapping_sub(c);
            prop_assert_eq!(difference & mask, wide as u64 & mask);
            let half = (x & 15) < (y & 15) + c;
            prop_assert_eq!(status.bits(), expected(wide, signed(a) - signed(b) - c as i128, half));
            prop_assert_eq!(status.bits() & !STATUS, 0);
        }
    }
}
