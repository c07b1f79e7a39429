//! Instructions that count, search and move bits (SDM vol. 2; BMI1, BMI2 and ABM among them).
//!
//! Undefined flags keep their values.

use iced_x86::Mnemonic;

use super::{Computed, flag_if, logic, plain, sign_bit};
use crate::exec::operand::truncate;
use crate::x86::rflags::{AF, CF, OF, PF, SF, STATUS, ZF};

/// BSF, BSR, TZCNT, LZCNT and POPCNT of `source`, which has `size` bytes. The value is `None` where BSF and BSR leave
/// the destination as it is. `None` for any other instruction.
pub(crate) fn count(mnemonic: Mnemonic, source: u64, size: usize) -> Option<(Option<u64>, Computed)> {
    use Mnemonic::*;
    let source = truncate(source, size);
    let bits = 8 * size as u64;
    let leading = u64::from(source.leading_zeros()) - (64 - bits);
    let trailing = u64::from(source.trailing_zeros()).min(bits);
    let (value, affected, flags) = match mnemonic {
        Bsf => (trailing, ZF, flag_if(source == 0, ZF)),
        Bsr => ((bits - 1).wrapping_sub(leading), ZF, flag_if(source == 0, ZF)),
        Tzcnt => (trailing, ZF | CF, flag_if(source == 0, CF) | flag_if(trailing == 0, ZF)),
        Lzcnt => (leading, ZF | CF, flag_if(source == 0, CF) | flag_if(leading == 0, ZF)),
        Popcnt => (source.count_ones().into(), STATUS, flag_if(source == 0, ZF)),
        _ => return None,
    };
    let keeps = matches!(mnemonic, Bsf | Bsr) && source == 0;
    Some(((!keeps).then_some(value), Computed { value, affected, flags }))
}

/// ANDN, BLSI, BLSMSK, BLSR, BEXTR and BZHI: `a` is the first source (of ANDN the one that is inverted), `b` the second.
/// `None` for any other instruction.
pub(crate) fn manipulate(mnemonic: Mnemonic, a: u64, b: u64, size: usize) -> Option<Computed> {
    use Mnemonic::*;
    let (a, b) = (truncate(a, size), truncate(b, size));
    let bits = 8 * size as u64;
    let low_mask =
        |count: u64| 1u64.checked_shl(count.try_into().unwrap_or(64)).map_or(u64::MAX, |bit| bit - 1);
    let (value, carry, affected) = match mnemonic {
        Andn => (!a & b, false, CF | ZF | SF | OF),
        Blsi => (a & a.wrapping_neg(), a != 0, CF | ZF | SF | OF),
        Blsmsk => (a ^ a.wrapping_sub(1), a == 0, CF | ZF | SF | OF),
        Blsr => (a & a.wrapping_sub(1), a == 0, CF | ZF | SF | OF),
        Bextr => {
            let (start, length) = (b & 0xff, b >> 8 & 0xff);
            let from = a.checked_shr(start.try_into().unwrap_or(64)).unwrap_or(0);
            (from & low_mask(length), false, CF | ZF | OF)
        }
        Bzhi => {
            let index = b & 0xff;
            (if index < bits { a & low_mask(index) } else { a }, index >= bits, CF | ZF | SF | OF)
        }
        _ => return None,
    };
    let by_result = logic(value, size);
    let flags = by_result.flags & !(CF | OF | PF | AF) | flag_if(carry, CF);
    Some(Computed { value: by_result.value, affected, flags })
}

/// Instructions of BMI2 that change no flags: SARX, SHLX, SHRX and RORX (`b` is the count), PDEP and PEXT (`b` is the
/// mask). `None` for any other instruction.
pub(crate) fn without_flags(mnemonic: Mnemonic, a: u64, b: u64, size: usize) -> Option<u64> {
    use Mnemonic::*;
    let as_shift = match mnemonic {
        Sarx => Sar,
        Shlx => Shl,
        Shrx => Shr,
        Rorx => Ror,
        Pdep => return Some(deposit(truncate(a, size), truncate(b, size))),
        Pext => return Some(extract(truncate(a, size), truncate(b, size))),
        _ => return None,
    };
    super::shift::shift(as_shift, a, b, false, size).map(|computed| computed.value)
}

fn deposit(mut source: u64, mut mask: u64) -> u64 {
    let mut value = 0;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        value |= if source & 1 != 0 { lowest } else { 0 };
        source >>= 1;
        mask ^= lowest;
    }
    value
}

fn extract(source: u64, mut mask: u64) -> u64 {
    let (mut value, mut bit) = (0, 1u64);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        value |= if source & lowest != 0 { bit } else { 0 };
        bit <<= 1;
        mask ^= lowest;
    }
    value
}

/// ADCX and ADOX: a sum whose carry in and out is the one flag `flag`, CF or OF.
pub(crate) fn add_by(flag: u64, a: u64, b: u64, flags: u64, size: usize) -> Computed {
    let (value, status) = crate::exec::status::add(a, b, flags & flag != 0, size);
    Computed { value: truncate(value, size), affected: flag, flags: flag_if(status.carry(), flag) }
}

/// BSWAP and MOVBE.
pub(crate) fn swap_bytes(value: u64, size: usize) -> Computed {
    plain(truncate(value.swap_bytes() >> (64 - 8 * size as u32), size))
}

/// Whether the sign bit of an operand of `size` bytes is set: what CBW, CWD and their kin spread.
pub(crate) fn is_negative(value: u64, size: usize) -> bool {
    value & sign_bit(size) != 0
}
