//! SSE2's integer operations, lane by lane, and the logical and shuffling ones of SSE.

use iced_x86::{Instruction, Mnemonic};

use super::Plain;
use super::vector_move::number;
use crate::exec::operand::{is_memory, sign_extend};
use crate::interpreter::core::Core;
use crate::interpreter::outside::Machine;

/// Combines lanes of `size` bytes.
fn lanes(size: usize, a: u128, b: u128, f: impl Fn(u64, u64) -> u64) -> u128 {
    let bits = 8 * size;
    let mask = u128::MAX >> (128 - bits);
    (0..16 / size).fold(0, |value, lane| {
        let at = lane * bits;
        let combined = f((a >> at & mask) as u64, (b >> at & mask) as u64);
        value | (u128::from(combined) & mask) << at
    })
}

/// The same on signed lanes.
fn signed_lanes(size: usize, a: u128, b: u128, f: impl Fn(i64, i64) -> i64) -> u128 {
    let signed = |value| sign_extend(value, size).cast_signed();
    lanes(size, a, b, |a, b| f(signed(a), signed(b)).cast_unsigned())
}

/// All ones where a comparison holds.
fn all_if(holds: bool) -> u64 {
    if holds { u64::MAX } else { 0 }
}

/// Limits a value to what `size` bytes can hold, signed.
fn saturate(value: i64, size: usize) -> i64 {
    let max = (1i64 << (8 * size - 1)) - 1;
    value.clamp(-max - 1, max)
}

fn arithmetic(mnemonic: Mnemonic, a: u128, b: u128) -> Option<u128> {
    use Mnemonic::*;
    let sum = |size| lanes(size, a, b, u64::wrapping_add);
    let difference = |size| lanes(size, a, b, u64::wrapping_sub);
    let unsigned_max = |size: usize| u64::MAX >> (64 - 8 * size);
    Some(match mnemonic {
        Paddb => sum(1),
        Paddw => sum(2),
        Paddd => sum(4),
        Paddq => sum(8),
        Psubb => difference(1),
        Psubw => difference(2),
        Psubd => difference(4),
        Psubq => difference(8),
        Paddsb => signed_lanes(1, a, b, |a, b| saturate(a + b, 1)),
        Paddsw => signed_lanes(2, a, b, |a, b| saturate(a + b, 2)),
        Psubsb => signed_lanes(1, a, b, |a, b| saturate(a - b, 1)),
        Psubsw => signed_lanes(2, a, b, |a, b| saturate(a - b, 2)),
        Paddusb => lanes(1, a, b, |a, b| (a + b).min(unsigned_max(1))),
        Paddusw => lanes(2, a, b, |a, b| (a + b).min(unsigned_max(2))),
        Psubusb => lanes(1, a, b, u64::saturating_sub),
        Psubusw => lanes(2, a, b, u64::saturating_sub),
        Pcmpeqb => lanes(1, a, b, |a, b| all_if(a == b)),
        Pcmpeqw => lanes(2, a, b, |a, b| all_if(a == b)),
        Pcmpeqd => lanes(4, a, b, |a, b| all_if(a == b)),
        Pcmpgtb => signed_lanes(1, a, b, |a, b| -i64::from(a > b)),
        Pcmpgtw => signed_lanes(2, a, b, |a, b| -i64::from(a > b)),
        Pcmpgtd => signed_lanes(4, a, b, |a, b| -i64::from(a > b)),
        Pminub => lanes(1, a, b, u64::min),
        Pmaxub => lanes(1, a, b, u64::max),
        Pminsw => signed_lanes(2, a, b, i64::min),
        Pmaxsw => signed_lanes(2, a, b, i64::max),
        Pavgb => lanes(1, a, b, |a, b| (a + b + 1) >> 1),
        Pavgw => lanes(2, a, b, |a, b| (a + b + 1) >> 1),
        Pmullw => signed_lanes(2, a, b, i64::wrapping_mul),
        Pmulhw => signed_lanes(2, a, b, |a, b| (a * b) >> 16),
        Pmulhuw => lanes(2, a, b, |a, b| (a * b) >> 16),
        Pmuludq => lanes(8, a, b, |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff)),
        Pmaddwd => lanes(4, a, b, |a, b| {
            let part = |value: u64, at: u32| sign_extend(value >> at & 0xffff, 2).cast_signed();
            (part(a, 0) * part(b, 0) + part(a, 16) * part(b, 16)).cast_unsigned()
        }),
        Psadbw => lanes(8, a, b, |a, b| {
            let byte = |value: u64, lane: u32| value >> (8 * lane) & 0xff;
            (0..8).map(|lane| byte(a, lane).abs_diff(byte(b, lane))).sum()
        }),
        Pand | Andps | Andpd => a & b,
        Pandn | Andnps | Andnpd => !a & b,
        Por | Orps | Orpd => a | b,
        Pxor | Xorps | Xorpd => a ^ b,
        _ => return None,
    })
}

/// Shifts of lanes; `count` is the whole source.
fn shifted(mnemonic: Mnemonic, a: u128, count: u128) -> Option<u128> {
    use Mnemonic::*;
    let count = u64::try_from(count & u128::from(u64::MAX)).unwrap_or(u64::MAX);
    let left = |size: usize| lanes(size, a, 0, |a, _| if count < 8 * size as u64 { a << count } else { 0 });
    let right = |size: usize| lanes(size, a, 0, |a, _| if count < 8 * size as u64 { a >> count } else { 0 });
    let arithmetic = |size: usize| signed_lanes(size, a, 0, |a, _| a >> count.min(8 * size as u64 - 1));
    let bytes = u32::try_from(count.min(16)).unwrap_or(16) * 8;
    Some(match mnemonic {
        Psllw => left(2),
        Pslld => left(4),
        Psllq => left(8),
        Psrlw => right(2),
        Psrld => right(4),
        Psrlq => right(8),
        Psraw => arithmetic(2),
        Psrad => arithmetic(4),
        Pslldq => a.checked_shl(bytes).unwrap_or(0),
        Psrldq => a.checked_shr(bytes).unwrap_or(0),
        _ => return None,
    })
}

/// Lanes of `size` bytes of `a` and `b` in turn, from the lower or the upper halves.
fn unpacked(size: usize, high: bool, a: u128, b: u128) -> u128 {
    let bits = 8 * size;
    let mask = u128::MAX >> (128 - bits);
    let first = if high { 64 } else { 0 };
    (0..8 / size).fold(0, |value, lane| {
        let at = first + lane * bits;
        value | (a >> at & mask) << (2 * lane * bits) | (b >> at & mask) << ((2 * lane + 1) * bits)
    })
}

/// Signed lanes of `from` bytes of `a`, then of `b`, limited to half their size by `limit`.
fn packed(from: usize, a: u128, b: u128, limit: impl Fn(i64) -> u64) -> u128 {
    let (bits, count) = (8 * from, 16 / from);
    let mask = u128::MAX >> (128 - bits / 2);
    (0..2 * count).fold(0, |value, lane| {
        let (source, at) = if lane < count { (a, lane * bits) } else { (b, (lane - count) * bits) };
        let signed = sign_extend((source >> at) as u64, from).cast_signed();
        value | (u128::from(limit(signed)) & mask) << (lane * bits / 2)
    })
}

fn rearranged(mnemonic: Mnemonic, a: u128, b: u128) -> Option<u128> {
    use Mnemonic::*;
    Some(match mnemonic {
        Punpcklbw => unpacked(1, false, a, b),
        Punpcklwd => unpacked(2, false, a, b),
        Punpckldq | Unpcklps => unpacked(4, false, a, b),
        Punpcklqdq | Unpcklpd => unpacked(8, false, a, b),
        Punpckhbw => unpacked(1, true, a, b),
        Punpckhwd => unpacked(2, true, a, b),
        Punpckhdq | Unpckhps => unpacked(4, true, a, b),
        Punpckhqdq | Unpckhpd => unpacked(8, true, a, b),
        Packsswb => packed(2, a, b, |v| saturate(v, 1).cast_unsigned()),
        Packssdw => packed(4, a, b, |v| saturate(v, 2).cast_unsigned()),
        Packuswb => packed(2, a, b, |v| v.clamp(0, 0xff).cast_unsigned()),
        _ => return None,
    })
}

/// Four lanes of `size` bytes, chosen by two bits each of `order`: the first two from `a`, the others from `b`.
fn chosen(size: usize, a: u128, b: u128, order: u8) -> u128 {
    let bits = 8 * size;
    let mask = u128::MAX >> (128 - bits);
    (0..4).fold(0, |value, lane| {
        let from = usize::from(order >> (2 * lane) & 3) * bits;
        let source = if lane < 2 { a } else { b };
        value | (source >> from & mask) << (lane * bits)
    })
}

fn shuffled(mnemonic: Mnemonic, a: u128, b: u128, order: u8) -> Option<u128> {
    use Mnemonic::*;
    const LOW: u128 = u64::MAX as u128;
    Some(match mnemonic {
        Pshufd => chosen(4, b, b, order),
        Pshuflw => b & !LOW | chosen(2, b, b, order),
        Pshufhw => b & LOW | chosen(2, b >> 64, b >> 64, order) << 64,
        Shufps => chosen(4, a, b, order),
        Shufpd => {
            let half = |value: u128, bit: u8| if order >> bit & 1 != 0 { value >> 64 } else { value & LOW };
            half(a, 0) | half(b, 1) << 64
        }
        _ => return None,
    })
}

impl<X: Machine> Core<X> {
    pub(super) fn vector_lanes(&mut self, insn: &Instruction) -> Plain {
        use Mnemonic::*;
        if !(0..insn.op_count()).any(|op| number(insn.op_register(op)).is_some()) {
            return Ok(false);
        }
        match insn.mnemonic() {
            Pmovmskb | Movmskps | Movmskpd => return self.masks(insn),
            Pextrw | Pinsrw => return self.word(insn),
            _ => {}
        }
        if number(insn.op0_register()).is_none() || !is_lanes(insn.mnemonic()) {
            return Ok(false);
        }
        self.check_vector()?;
        let a = self.source(insn, 0, true)?;
        let immediate =
            insn.op_count() == 2 && !is_memory(insn.op1_kind()) && number(insn.op1_register()).is_none();
        let b = if immediate { insn.immediate8().into() } else { self.source(insn, 1, true)? };
        let mnemonic = insn.mnemonic();
        let value = arithmetic(mnemonic, a, b)
            .or_else(|| shifted(mnemonic, a, b))
            .or_else(|| rearranged(mnemonic, a, b))
            .or_else(|| shuffled(mnemonic, a, b, insn.immediate8()));
        let Some(value) = value else { return Ok(false) };
        self.set_xmm(insn, 0, value)?;
        Ok(true)
    }

    /// The signs of all lanes as a number.
    fn masks(&mut self, insn: &Instruction) -> Plain {
        if number(insn.op1_register()).is_none() {
            return Ok(false);
        }
        self.check_vector()?;
        let value = self.source(insn, 1, true)?;
        let bits = match insn.mnemonic() {
            Mnemonic::Pmovmskb => 8,
            Mnemonic::Movmskps => 32,
            _ => 64,
        };
        let signs = (0..128 / bits).map(|lane| u64::from(value >> (lane * bits + bits - 1) & 1 != 0) << lane);
        self.set(insn.op0_register(), signs.sum());
        Ok(true)
    }

    /// PEXTRW and PINSRW.
    fn word(&mut self, insn: &Instruction) -> Plain {
        let at = u32::from(insn.immediate8() % 8) * 16;
        if insn.mnemonic() == Mnemonic::Pextrw {
            // The form with a destination in memory is of SSE4.1.
            if number(insn.op1_register()).is_none() || is_memory(insn.op0_kind()) {
                return Ok(false);
            }
            self.check_vector()?;
            let value = self.source(insn, 1, true)? >> at & 0xffff;
            self.set(insn.op0_register(), value as u64);
            return Ok(true);
        }
        if number(insn.op0_register()).is_none() {
            return Ok(false);
        }
        self.check_vector()?;
        let word = u128::from(self.read(insn, 1)? & 0xffff);
        let old = self.source(insn, 0, true)?;
        self.set_xmm(insn, 0, old & !(0xffff << at) | word << at)?;
        Ok(true)
    }
}

/// Whether [`Core::vector_lanes`] implements it.
fn is_lanes(mnemonic: Mnemonic) -> bool {
    arithmetic(mnemonic, 0, 0)
        .or_else(|| shifted(mnemonic, 0, 0))
        .or_else(|| rearranged(mnemonic, 0, 0))
        .or_else(|| shuffled(mnemonic, 0, 0, 0))
        .is_some()
}
