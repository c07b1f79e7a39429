//! SSE and SSE2: moves between vector registers, general ones and memory.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Plain;
use crate::exec::operand::is_memory;
use crate::interpreter::core::{Core, of_operand};
use crate::interpreter::outside::Machine;
use crate::x86::exception::Exception;

/// The number of an XMM register; `None` for any other one.
pub(super) fn number(register: Register) -> Option<usize> {
    (Register::XMM0..=Register::XMM15).contains(&register).then(|| register.number() % 16)
}

const LOW: u128 = u64::MAX as u128;

/// Raises #GP, whatever the segment is, where memory must be aligned and is not.
fn check_alignment(va: u64, aligned: bool) -> Result<(), Exception> {
    if !aligned || va.is_multiple_of(16) { Ok(()) } else { Err(Exception::protection(0)) }
}

impl<X: Machine> Core<X> {
    fn xmm(&self, insn: &Instruction, operand: u32) -> Result<u128, Exception> {
        let number = number(insn.op_register(operand)).ok_or(Exception::undefined())?;
        Ok(self.vector.xmm[number % 16])
    }

    pub(super) fn set_xmm(&mut self, insn: &Instruction, operand: u32, value: u128) -> Result<(), Exception> {
        let number = number(insn.op_register(operand)).ok_or(Exception::undefined())?;
        self.vector.xmm[number % 16] = value;
        Ok(())
    }

    /// An XMM register, or memory of the operand's size. `aligned`: memory of 16 bytes must be.
    pub(super) fn source(
        &mut self,
        insn: &Instruction,
        operand: u32,
        aligned: bool,
    ) -> Result<u128, Exception> {
        if !is_memory(insn.op_kind(operand)) {
            return self.xmm(insn, operand);
        }
        let va = self.address(insn, operand)?;
        let size = insn.memory_size().size();
        if size < 16 {
            return self.load(va, size).map(u128::from).map_err(|e| of_operand(insn, e));
        }
        check_alignment(va, aligned)?;
        self.load_wide(va).map_err(|e| of_operand(insn, e))
    }

    fn load_wide(&mut self, va: u64) -> Result<u128, Exception> {
        let (user, mut bytes) = (self.cpu.user, [0; 16]);
        if va % 4096 <= 4080 {
            let low = self.reach.load::<8>(va, user)?;
            let high = self.reach.load::<8>(va.wrapping_add(8), user)?;
            return Ok(u128::from(low) | u128::from(high) << 64);
        }
        self.reach.read_bytes(va, &mut bytes, user)?;
        Ok(u128::from_le_bytes(bytes))
    }

    fn store_wide(&mut self, va: u64, value: u128) -> Result<(), Exception> {
        let user = self.cpu.user;
        if va % 4096 <= 4080 {
            self.reach.store::<8>(va, value as u64, user)?;
            return self.reach.store::<8>(va.wrapping_add(8), (value >> 64) as u64, user).map(drop);
        }
        self.reach.write_bytes(va, &value.to_le_bytes(), user).map(drop)
    }

    pub(super) fn vector_move(&mut self, insn: &Instruction) -> Plain {
        use Mnemonic::*;
        let aligned = match insn.mnemonic() {
            Movaps | Movapd | Movdqa | Movntps | Movntpd | Movntdq => true,
            Movups | Movupd | Movdqu => false,
            _ => return self.partial_move(insn),
        };
        if number(insn.op0_register()).is_none() && number(insn.op1_register()).is_none() {
            return Ok(false);
        }
        self.check_vector()?;
        if is_memory(insn.op0_kind()) {
            let value = self.xmm(insn, 1)?;
            let va = self.address(insn, 0)?;
            check_alignment(va, aligned)?;
            self.store_wide(va, value).map_err(|e| of_operand(insn, e))?;
        } else {
            let value = self.source(insn, 1, aligned)?;
            self.set_xmm(insn, 0, value)?;
        }
        Ok(true)
    }

    /// Moves of less than a whole register.
    fn partial_move(&mut self, insn: &Instruction) -> Plain {
        use Mnemonic::*;
        let has_xmm = (0..insn.op_count()).any(|op| number(insn.op_register(op)).is_some());
        let known = matches!(
            insn.mnemonic(),
            Movd | Movq | Movss | Movsd | Movlps | Movlpd | Movhps | Movhpd | Movhlps | Movlhps
        );
        if !known || !has_xmm {
            return Ok(false);
        }
        self.check_vector()?;
        if is_memory(insn.op0_kind()) {
            let value = self.xmm(insn, 1)?;
            let high = matches!(insn.mnemonic(), Movhps | Movhpd);
            self.write(insn, 0, if high { (value >> 64) as u64 } else { value as u64 })?;
            return Ok(true);
        }
        if number(insn.op0_register()).is_none() {
            // MOVD and MOVQ to a general register.
            let value = self.xmm(insn, 1)? as u64;
            self.set(insn.op0_register(), value);
            return Ok(true);
        }
        let general = insn.op1_kind() == OpKind::Register && insn.op1_register().is_gpr();
        let source =
            if general { self.get(insn.op1_register()).into() } else { self.source(insn, 1, false)? };
        let from_register = !is_memory(insn.op1_kind());
        let old = self.xmm(insn, 0)?;
        let value = match insn.mnemonic() {
            Movd | Movq => source & LOW,
            // From memory the rest of the register is cleared.
            Movss if from_register => old & !0xffff_ffff | source & 0xffff_ffff,
            Movsd if from_register => old & !LOW | source & LOW,
            Movss | Movsd => source,
            Movhlps => old & !LOW | source >> 64,
            Movlps | Movlpd => old & !LOW | source & LOW,
            _ => old & LOW | source << 64,
        };
        self.set_xmm(insn, 0, value)?;
        Ok(true)
    }
}
