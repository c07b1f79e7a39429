//! A guest's instruction at another address.

use iced_x86::{ConstantOffsets, FlowControl, Instruction, Register};

use super::emitter::{Emitter, Unsuitable};
use super::recipe::Recipe;
use crate::x86::sensitive::Class;

/// Whether a copy of an instruction at another address does the same, but for a displacement.
///
/// Not so are transfers of control, which depend on where they are, and sensitive instructions.
pub(crate) fn is_plain(insn: &Instruction) -> bool {
    insn.flow_control() == FlowControl::Next && Class::of(insn).is_none()
}

impl Emitter<'_> {
    /// Emits a copy of an instruction that [`is_plain`], of which `code` are the bytes.
    pub fn copy(
        &mut self,
        insn: &Instruction,
        offsets: ConstantOffsets,
        code: &[u8],
    ) -> Result<(), Unsuitable> {
        self.copy_at(Recipe::at(insn.ip()), insn, offsets, code)
    }

    /// The same where the guest's state is another.
    pub fn copy_at(
        &mut self,
        recipe: Recipe,
        insn: &Instruction,
        offsets: ConstantOffsets,
        code: &[u8],
    ) -> Result<(), Unsuitable> {
        if !insn.is_ip_rel_memory_operand() {
            self.op(recipe, code);
            return Ok(());
        }
        if insn.memory_base() != Register::RIP || offsets.displacement_size() != 4 {
            return Err(Unsuitable::Form);
        }
        let end = self.here().wrapping_add(code.len() as u64);
        let distance = insn.ip_rel_memory_address().wrapping_sub(end).cast_signed();
        let distance = i32::try_from(distance).map_err(|_| Unsuitable::OutOfReach)?;
        let at = offsets.displacement_offset();
        let (head, rest) = code.split_at_checked(at).ok_or(Unsuitable::Form)?;
        let tail = rest.get(4..).ok_or(Unsuitable::Form)?;
        self.op(recipe, head);
        self.raw(&distance.to_le_bytes());
        self.raw(tail);
        Ok(())
    }
}
