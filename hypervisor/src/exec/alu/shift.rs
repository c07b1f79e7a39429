//! Shifts and rotations (SDM vol. 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD).
//!
//! Where the manual leaves a flag undefined it gets the value that the formula for a count of 1 has.

use iced_x86::Mnemonic;

use super::{Computed, flag_if, plain, sign_bit, with_status};
use crate::exec::operand::{sign_extend, truncate};
use crate::exec::status::Status;
use crate::x86::rflags::{CF, OF};

/// The count that an instruction with operands of `size` bytes takes from `count`.
const fn masked(count: u64, size: usize) -> u32 {
    (count & if size == 8 { 0x3f } else { 0x1f }) as u32
}

/// What a shift or rotation leaves of `value`; `carry` is CF. `None` for any other instruction.
pub(crate) fn shift(
    mnemonic: Mnemonic,
    value: u64,
    count: u64,
    carry: bool,
    size: usize,
) -> Option<Computed> {
    use Mnemonic::*;
    let (value, count) = (truncate(value, size), masked(count, size));
    let operation = match mnemonic {
        Shl | Sal => |value, count, size| with_status(left(value, count, size), size),
        Shr => |value, count, size| with_status(right(value, count, size), size),
        Sar => |value, count, size| with_status(arithmetic(value, count, size), size),
        Rol => rotate_left,
        Ror => rotate_right,
        Rcl => return Some(through_carry_left(value, count, carry, size)),
        Rcr => return Some(through_carry_right(value, count, carry, size)),
        _ => return None,
    };
    Some(if count == 0 { plain(value) } else { operation(value, count, size) })
}

/// A shift's result with these CF and OF.
#[inline(always)]
fn shifted(value: u64, carry: bool, overflow: bool, size: usize) -> (u64, Status) {
    (value, Status::with_carry_and_overflow(value, carry, overflow, size))
}

/// A rotation's: it changes no other flags.
fn rotated(value: u64, carry: bool, overflow: bool, size: usize) -> Computed {
    let flags = flag_if(carry, CF) | flag_if(overflow, OF);
    Computed { value: truncate(value, size), affected: CF | OF, flags }
}

/// SHL of an operand by a count that is neither 0 nor more than the instruction takes.
#[inline(always)]
pub(crate) fn left(value: u64, count: u32, size: usize) -> (u64, Status) {
    let value = truncate(value, size);
    let wide = u128::from(value) << count;
    let (result, carry) = (truncate(wide as u64, size), wide >> (8 * size) & 1 != 0);
    shifted(result, carry, (result & sign_bit(size) != 0) != carry, size)
}

/// SHR, as [`left`].
#[inline(always)]
pub(crate) fn right(value: u64, count: u32, size: usize) -> (u64, Status) {
    let value = truncate(value, size);
    let carry = value >> (count - 1) & 1 != 0;
    shifted(value.checked_shr(count).unwrap_or(0), carry, value & sign_bit(size) != 0, size)
}

/// SAR, as [`left`].
#[inline(always)]
pub(crate) fn arithmetic(value: u64, count: u32, size: usize) -> (u64, Status) {
    let extended = sign_extend(value, size).cast_signed();
    let carry = extended >> (count - 1) & 1 != 0;
    shifted(truncate((extended >> count).cast_unsigned(), size), carry, false, size)
}

fn rotate_left(value: u64, count: u32, size: usize) -> Computed {
    let (result, carry, overflow) = turned_left(value, count, size);
    rotated(result, carry, overflow, size)
}

/// ROL of an operand by a count that is not 0: the result, CF and OF.
#[inline(always)]
pub(crate) fn turned_left(value: u64, count: u32, size: usize) -> (u64, bool, bool) {
    let (value, bits) = (truncate(value, size), 8 * size as u32);
    let by = count % bits;
    let result = if by == 0 { value } else { truncate(value << by | value >> (bits - by), size) };
    let carry = result & 1 != 0;
    (result, carry, (result & sign_bit(size) != 0) != carry)
}

fn rotate_right(value: u64, count: u32, size: usize) -> Computed {
    let (result, carry, overflow) = turned_right(value, count, size);
    rotated(result, carry, overflow, size)
}

/// ROR, as [`turned_left`].
#[inline(always)]
pub(crate) fn turned_right(value: u64, count: u32, size: usize) -> (u64, bool, bool) {
    let (value, bits) = (truncate(value, size), 8 * size as u32);
    let by = count % bits;
    let result = if by == 0 { value } else { truncate(value >> by | value << (bits - by), size) };
    let carry = result & sign_bit(size) != 0;
    (result, carry, (result & sign_bit(size) >> 1 != 0) != carry)
}

/// Rotates the operand with CF above its top bit.
fn through_carry_left(value: u64, count: u32, carry: bool, size: usize) -> Computed {
    let bits = 8 * size as u32 + 1;
    let by = count % bits;
    if by == 0 {
        // CF keeps its value, and OF is undefined where the count is not 0.
        return plain(value);
    }
    let wide = u128::from(value) | u128::from(carry) << (bits - 1);
    let wide = wide << by | wide >> (bits - by);
    let (result, carry) = (truncate(wide as u64, size), wide >> (bits - 1) & 1 != 0);
    rotated(result, carry, (result & sign_bit(size) != 0) != carry, size)
}

fn through_carry_right(value: u64, count: u32, carry: bool, size: usize) -> Computed {
    let bits = 8 * size as u32 + 1;
    let by = count % bits;
    if by == 0 {
        return plain(value);
    }
    let wide = u128::from(value) | u128::from(carry) << (bits - 1);
    let wide = wide >> by | wide << (bits - by);
    let (result, carry) = (truncate(wide as u64, size), wide >> (bits - 1) & 1 != 0);
    let top_two = (result & sign_bit(size) != 0) != (result & sign_bit(size) >> 1 != 0);
    rotated(result, carry, top_two, size)
}

/// SHLD (`left`) and SHRD: shifts `value` by `count`, and fills it from `fill`.
pub(crate) fn double_shift(left: bool, value: u64, fill: u64, count: u64, size: usize) -> Computed {
    let (value, fill, count) = (truncate(value, size), truncate(fill, size), masked(count, size));
    if count == 0 {
        return plain(value);
    }
    let bits = 8 * size as u32;
    // A count beyond 16 with operands of that size is undefined: bits of both come round again.
    let count = if count > bits { count - bits } else { count };
    let (result, carry) = if left {
        let rest = fill.checked_shr(bits - count).unwrap_or(0);
        (value.checked_shl(count).unwrap_or(0) | rest, value >> (bits - count) & 1 != 0)
    } else {
        let rest = fill.checked_shl(bits - count).unwrap_or(0);
        (value.checked_shr(count).unwrap_or(0) | rest, value >> (count - 1) & 1 != 0)
    };
    let result = truncate(result, size);
    with_status(shifted(result, carry, (result ^ value) & sign_bit(size) != 0, size), size)
}
