//! Registers and operands of a decoded instruction.

use iced_x86::{Instruction, OpKind, Register};

use super::outside::{Attempt, Memory, Stored};
use crate::x86::exception::Exception;
use crate::x86::registers::Regs;

/// The 64-bit register with this number in instructions.
fn slot(regs: &mut Regs, number: usize) -> &mut u64 {
    match number & 15 {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}

/// The general register with this number in instructions, whole.
pub(crate) fn register_mut(regs: &mut Regs, number: u8) -> &mut u64 {
    slot(regs, number.into())
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

fn value(regs: &Regs, number: usize) -> u64 {
    match number & 15 {
        0 => regs.rax,
        1 => regs.rcx,
        2 => regs.rdx,
        3 => regs.rbx,
        4 => regs.rsp,
        5 => regs.rbp,
        6 => regs.rsi,
        7 => regs.rdi,
        8 => regs.r8,
        9 => regs.r9,
        10 => regs.r10,
        11 => regs.r11,
        12 => regs.r12,
        13 => regs.r13,
        14 => regs.r14,
        _ => regs.r15,
    }
}

/// The value of a general register of any size, zero-extended.
pub(crate) fn read_register(regs: &Regs, register: Register) -> u64 {
    let full = value(regs, register.full_register().number());
    if is_high_byte(register) { full >> 8 & 0xff } else { truncate(full, register.size()) }
}

/// Sets a general register of any size: 32-bit ones clear the upper half, smaller ones keep the rest.
pub(crate) fn write_register(regs: &mut Regs, register: Register, value: u64) {
    let full = slot(regs, register.full_register().number());
    *full = match register.size() {
        1 if is_high_byte(register) => *full & !0xff00 | (value & 0xff) << 8,
        1 => *full & !0xff | value & 0xff,
        2 => *full & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
}

/// The low `size` bytes of `value`.
pub(crate) const fn truncate(value: u64, size: usize) -> u64 {
    if size >= 8 { value } else { value & ((1 << (size * 8)) - 1) }
}

/// The sign-extended low `size` bytes of `value`.
pub(crate) fn sign_extend(value: u64, size: usize) -> u64 {
    let shift = 64 - 8 * size.clamp(1, 8) as u32;
    ((truncate(value, size) << shift) as i64 >> shift) as u64
}

/// Whether all register operands are general ones: MOV and others also have forms with other registers.
pub(crate) fn is_integer(insn: &Instruction) -> bool {
    (0..insn.op_count()).all(|op| insn.op_kind(op) != OpKind::Register || insn.op_register(op).is_gpr())
}

/// The linear address of a memory operand, on flat segments.
///
/// `None` where the index is a vector register, which no emulated instruction has.
pub(crate) fn linear_address(regs: &Regs, insn: &Instruction, operand: u32) -> Option<u64> {
    let value = |register: Register, _, _| {
        Some(match register {
            Register::FS => regs.fs_base,
            Register::GS => regs.gs_base,
            Register::ES | Register::CS | Register::SS | Register::DS => 0,
            r if r.is_gpr() => read_register(regs, r),
            _ => return None,
        })
    };
    insn.virtual_address(operand, 0, value)
}

/// Where an instruction's operands are: registers, and memory that is accessed with the running code's rights.
pub(crate) struct Operands<'a, M> {
    pub regs: &'a mut Regs,
    pub memory: &'a mut M,
    /// Memory is accessed as user mode does, instead of as the kernel does.
    pub user: bool,
}

impl<M: Memory> Operands<'_, M> {
    /// The linear address of a memory operand.
    pub fn address(&self, insn: &Instruction, operand: u32) -> Attempt<u64, M> {
        linear_address(self.regs, insn, operand).ok_or(Exception::undefined().into())
    }

    /// Reads a value of `size` (1 to 8) bytes at `va`.
    pub fn load(&mut self, va: u64, size: usize) -> Attempt<u64, M> {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..size).ok_or(Exception::undefined())?;
        self.memory.read(va, part, self.user)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Stores the low `size` (1 to 8) bytes of `value` at `va`.
    pub fn store(&mut self, va: u64, size: usize, value: u64) -> Attempt<Stored, M> {
        let bytes = value.to_le_bytes();
        let part = bytes.get(..size).ok_or(Exception::undefined())?;
        self.memory.write(va, part, self.user)
    }

    /// The value of a register, memory or immediate operand; immediates are sign-extended.
    pub fn read(&mut self, insn: &Instruction, operand: u32) -> Attempt<u64, M> {
        match insn.op_kind(operand) {
            OpKind::Register => Ok(read_register(self.regs, general(insn.op_register(operand))?)),
            kind if is_memory(kind) => {
                let va = self.address(insn, operand)?;
                self.load(va, insn.memory_size().size())
            }
            _ => insn.try_immediate(operand).map_err(|_| Exception::undefined().into()),
        }
    }

    /// Sets a register or memory operand.
    pub fn write(&mut self, insn: &Instruction, operand: u32, value: u64) -> Attempt<(), M> {
        if insn.op_kind(operand) == OpKind::Register {
            write_register(self.regs, general(insn.op_register(operand))?, value);
            return Ok(());
        }
        let va = self.address(insn, operand)?;
        self.store(va, insn.memory_size().size(), value).map(drop)
    }
}

/// Size of an operand in bytes.
pub(crate) fn operand_size(insn: &Instruction, operand: u32) -> usize {
    match insn.op_kind(operand) {
        OpKind::Register => insn.op_register(operand).size(),
        _ => insn.memory_size().size(),
    }
}

fn general(register: Register) -> Result<Register, Exception> {
    if register.is_gpr() { Ok(register) } else { Err(Exception::undefined()) }
}

pub(crate) fn is_memory(kind: OpKind) -> bool {
    use OpKind::*;
    matches!(
        kind,
        Memory
            | MemorySegSI
            | MemorySegESI
            | MemorySegRSI
            | MemorySegDI
            | MemorySegEDI
            | MemorySegRDI
            | MemoryESDI
            | MemoryESEDI
            | MemoryESRDI
    )
}

#[cfg(test)]
mod tests {
    use crate::exec::operand::*;

    #[test]
    fn registers_of_every_size() {
        let mut regs = Regs { rbx: 0x1122_3344_5566_7788, r9: u64::MAX, ..Regs::default() };
        for (register, value) in [
            (Register::RBX, 0x1122_3344_5566_7788),
            (Register::EBX, 0x5566_7788),
            (Register::BX, 0x7788),
            (Register::BL, 0x88),
            (Register::BH, 0x77),
            (Register::R9L, 0xff),
        ] {
            assert_eq!(read_register(&regs, register), value, "{register:?}");
        }
        write_register(&mut regs, Register::BH, 0xaaa);
        assert_eq!(regs.rbx, 0x1122_3344_5566_aa88);
        write_register(&mut regs, Register::BX, 0x1_0002);
        assert_eq!(regs.rbx, 0x1122_3344_5566_0002);
        write_register(&mut regs, Register::EBX, u64::MAX);
        assert_eq!(regs.rbx, 0xffff_ffff);
        write_register(&mut regs, Register::R9D, 1);
        assert_eq!(regs.r9, 1);
    }
}
