//! The memory operand of a guest's instruction in another instruction of ours.

use iced_x86::{Instruction, Register};

use super::emitter::{Emitter, Unsuitable};
use super::recipe::Recipe;

/// Whether an instruction's memory operand uses the register with this number.
pub(super) fn uses(insn: &Instruction, register: u8) -> bool {
    [insn.memory_base(), insn.memory_index()]
        .into_iter()
        .any(|r| r.is_gpr() && usize::from(register) == r.number())
}

/// A register that the memory operand does not use.
pub(super) fn free_register(insn: &Instruction) -> u8 {
    [1, 0, 2].into_iter().find(|register| !uses(insn, *register)).unwrap_or(1)
}

impl Emitter<'_> {
    /// Emits an instruction with `register` in ModRM.reg and the memory operand of `insn`, `more` bytes further on.
    ///
    /// `prefix` goes before REX; `wide` is REX.W.
    pub fn with_operand(
        &mut self,
        recipe: Recipe,
        insn: &Instruction,
        (prefix, wide, opcode): (&[u8], bool, &[u8]),
        register: u8,
        more: i32,
    ) -> Result<(), Unsuitable> {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let mut code = [0u8; 16];
        let mut len = 0;
        let mut put = |byte: u8| {
            if let Some(place) = code.get_mut(len) {
                *place = byte;
            }
            len += 1;
        };
        match insn.segment_prefix() {
            Register::FS => put(0x64),
            Register::GS => put(0x65),
            _ => {}
        }
        for byte in prefix {
            put(*byte);
        }
        let r = register >> 3 & 1;
        if base == Register::RIP {
            let target = insn.ip_rel_memory_address().wrapping_add_signed(more.into());
            put(0x40 | u8::from(wide) << 3 | r << 2);
            for byte in opcode {
                put(*byte);
            }
            put((register & 7) << 3 | 5);
            let code = code.get(..len).ok_or(Unsuitable::Form)?;
            return self.relative(recipe, code, target, &[]);
        }
        let whole = |part: Register| part == Register::None || part.is_gpr64();
        if !whole(base) || !whole(index) {
            return Err(Unsuitable::Form);
        }
        let displacement = insn.memory_displacement64().cast_signed().wrapping_add(more.into());
        let displacement = i32::try_from(displacement).map_err(|_| Unsuitable::OutOfReach)?;
        let number = |part: Register| if part == Register::None { 0 } else { part.number() as u8 };
        let (b, x) = (number(base), number(index));
        put(0x40 | u8::from(wide) << 3 | r << 2 | (x >> 3 & 1) << 1 | b >> 3 & 1);
        for byte in opcode {
            put(*byte);
        }
        // Always with an index byte and a 32-bit displacement: one form for all.
        let no_index = index == Register::None;
        let scale = insn.memory_index_scale().trailing_zeros() as u8 & 3;
        let index_bits = if no_index { 4 } else { x & 7 };
        if base == Register::None {
            put((register & 7) << 3 | 4);
            put(scale << 6 | index_bits << 3 | 5);
        } else {
            put(0x80 | (register & 7) << 3 | 4);
            put(scale << 6 | index_bits << 3 | b & 7);
        }
        self.op(recipe, code.get(..len).ok_or(Unsuitable::Form)?);
        self.raw(&displacement.to_le_bytes());
        Ok(())
    }
}
