//! Products and quotients (SDM vol. 2, MUL, IMUL, DIV, IDIV).

use super::{Computed, flag_if};
use crate::exec::operand::{sign_extend, truncate};
use crate::exec::status::Status;
use crate::x86::rflags::{CF, OF, STATUS};

/// A product of twice the operands' size. CF and OF say whether its upper half means anything; the other flags are
/// undefined, and follow the lower half here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    pub low: u64,
    pub high: u64,
    flags: u64,
}

impl Product {
    fn new(low: u64, high: u64, overflows: bool, size: usize) -> Self {
        let (low, high) = (truncate(low, size), truncate(high, size));
        Self { low, high, flags: super::logic(low, size).flags & !(CF | OF) | flag_if(overflows, CF | OF) }
    }

    /// The lower half, with the flags.
    pub fn computed(self) -> Computed {
        Computed { value: self.low, affected: STATUS, flags: self.flags }
    }
}

/// MUL.
pub(crate) fn unsigned(a: u64, b: u64, size: usize) -> Product {
    let wide = u128::from(truncate(a, size)) * u128::from(truncate(b, size));
    let high = (wide >> (8 * size)) as u64;
    Product::new(wide as u64, high, high != 0, size)
}

/// IMUL.
pub(crate) fn signed(a: u64, b: u64, size: usize) -> Product {
    let wide = |value| i128::from(sign_extend(value, size).cast_signed());
    // 64 bits by 64 bits fit into 128.
    let wide = wide(a).wrapping_mul(wide(b));
    let low = wide as u64;
    let fits = wide == i128::from(sign_extend(low, size).cast_signed());
    Product::new(low, (wide >> (8 * size)) as u64, !fits, size)
}

/// The lower half of IMUL's product, with the flags.
#[inline(always)]
pub(crate) fn low(a: u64, b: u64, size: usize) -> (u64, Status) {
    let beyond = 64 - 8 * size as u32;
    let signed = |value: u64| i128::from((value << beyond).cast_signed() >> beyond);
    let wide = signed(a).wrapping_mul(signed(b));
    let value = wide as u64;
    let overflows = wide != signed(value);
    (value, Status::with_carry_and_overflow(value, overflows, overflows, size))
}

/// DIV and IDIV of `high:low` by `divisor`: quotient and remainder; `None` raises #DE.
pub(crate) fn divide(is_signed: bool, high: u64, low: u64, divisor: u64, size: usize) -> Option<(u64, u64)> {
    let bits = 8 * size as u32;
    let dividend = u128::from(truncate(high, size)) << bits | u128::from(truncate(low, size));
    if !is_signed {
        let divisor = u128::from(truncate(divisor, size));
        let (quotient, rest) = (dividend.checked_div(divisor)?, dividend.checked_rem(divisor)?);
        return (quotient >> bits == 0).then_some((quotient as u64, rest as u64));
    }
    let unused = 128 - 2 * bits;
    let dividend = (dividend << unused).cast_signed() >> unused;
    let divisor = i128::from(sign_extend(divisor, size).cast_signed());
    let (quotient, rest) = (dividend.checked_div(divisor)?, dividend.checked_rem(divisor)?);
    let fits = quotient == i128::from(sign_extend(quotient as u64, size).cast_signed());
    fits.then_some((truncate(quotient as u64, size), truncate(rest as u64, size)))
}
