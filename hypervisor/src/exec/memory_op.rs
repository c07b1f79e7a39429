//! Ordinary instructions whose memory operand must not be accessed natively: stores to page tables in use,
//! and accesses to what is not memory.
//!
//! Moves, exchanges, integer and bit arithmetic and string stores on general registers: what compilers and
//! kernels use on page tables. Vector registers are the engine's, so that stores of those are not here.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::access::{Rights, Stored, Trap};
use super::alu;
use super::alu::Outcome;
use super::exception::Stop;
use super::operand::{read_register, truncate, write_register};
use crate::x86::rflags;

/// How many elements of a repeated string instruction one exit transfers: a page of quadwords.
const MAX_REPEATS: u64 = 512;

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emulated {
    /// Done; RIP goes to the next instruction.
    Done,
    /// A repeated instruction has more to do; RIP stays.
    Unfinished,
    /// Not an instruction that is known here; nothing was changed.
    Unknown,
}

impl Trap<'_> {
    /// Emulates an instruction that accesses memory.
    pub fn memory_instruction(&mut self, insn: &Instruction) -> Result<Emulated, Stop> {
        use Mnemonic::*;
        match insn.mnemonic() {
            Stosb | Stosw | Stosd | Stosq | Movsb | Movsw | Movsd | Movsq if is_string(insn) => {
                return self.string(insn);
            }
            Xchg => self.exchange(insn)?,
            Xadd => self.exchange_add(insn)?,
            Cmpxchg => self.compare_exchange(insn)?,
            Push if is_integer(insn) => self.push(insn)?,
            Bts | Btr | Btc => self.bit_operation(insn)?,
            Cmp | Test => {
                let Some(outcome) = self.compute(insn)? else { return Ok(Emulated::Unknown) };
                self.regs.rflags = outcome.apply(self.regs.rflags);
            }
            _ => {
                let Some(outcome) = self.compute(insn)? else { return Ok(Emulated::Unknown) };
                self.write_operand(insn, 0, outcome.value)?;
                self.regs.rflags = outcome.apply(self.regs.rflags);
            }
        }
        Ok(Emulated::Done)
    }

    /// The value for the first operand, from it and the second.
    fn compute(&mut self, insn: &Instruction) -> Result<Option<Outcome>, Stop> {
        use Mnemonic::*;
        let mnemonic = insn.mnemonic();
        let size = Self::operand_size(insn, 0);
        let carry = self.regs.rflags & rflags::CF != 0;
        if !alu::is_known(mnemonic) || !matches!(size, 1 | 2 | 4 | 8) || !is_integer(insn) {
            return Ok(None);
        }
        let only_source = matches!(mnemonic, Mov | Movnti | Movzx | Movsx | Movsxd);
        let a = if only_source { 0 } else { self.read_operand(insn, 0)? };
        let mut b = if insn.op_count() > 1 { self.read_operand(insn, 1)? } else { 0 };
        if matches!(mnemonic, Movsx | Movsxd) {
            b = sign_extend(b, Self::operand_size(insn, 1));
        }
        Ok(alu::compute(mnemonic, a, b, carry, size))
    }

    /// BTS, BTR and BTC. A bit number in a register may lie outside the operand: it then names a bit of
    /// memory before or after it.
    fn bit_operation(&mut self, insn: &Instruction) -> Result<(), Stop> {
        let size = insn.memory_size().size();
        let mut va = self.linear_address(insn, 0)?;
        let mut number = self.read_operand(insn, 1)?;
        if insn.op1_kind() == OpKind::Register {
            let signed = sign_extend(number, size) as i64;
            let operands_away = signed.div_euclid(size as i64 * 8);
            va = va.wrapping_add_signed(operands_away.wrapping_mul(size as i64));
            number = signed as u64;
        }
        let bit = (number % (size as u64 * 8)) as u32;
        let (old, mask) = (self.read_value(va, size, Rights::Current)?, 1u64 << bit);
        let value = match insn.mnemonic() {
            Mnemonic::Bts => old | mask,
            Mnemonic::Btr => old & !mask,
            _ => old ^ mask,
        };
        self.write_value(va, size, value, Rights::Current)?;
        self.regs.rflags = alu::bit(old, value, bit).apply(self.regs.rflags);
        Ok(())
    }

    fn exchange(&mut self, insn: &Instruction) -> Result<(), Stop> {
        let (a, b) = (self.read_operand(insn, 0)?, self.read_operand(insn, 1)?);
        // Memory first: only that can fault.
        let memory = if insn.op0_kind() == OpKind::Register { 1 } else { 0 };
        let (to_memory, to_register) = if memory == 0 { (b, a) } else { (a, b) };
        self.write_operand(insn, memory, to_memory)?;
        self.write_operand(insn, 1 - memory, to_register)?;
        Ok(())
    }

    fn exchange_add(&mut self, insn: &Instruction) -> Result<(), Stop> {
        let (old, b) = (self.read_operand(insn, 0)?, self.read_operand(insn, 1)?);
        let sum = alu::add(old, b, false, Self::operand_size(insn, 0));
        self.write_operand(insn, 0, sum.value)?;
        self.write_operand(insn, 1, old)?;
        self.regs.rflags = sum.apply(self.regs.rflags);
        Ok(())
    }

    fn compare_exchange(&mut self, insn: &Instruction) -> Result<(), Stop> {
        let size = Self::operand_size(insn, 0);
        let accumulator = match size {
            1 => Register::AL,
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        let (old, new) = (self.read_operand(insn, 0)?, self.read_operand(insn, 1)?);
        let compared = alu::sub(read_register(self.regs, accumulator), old, false, size);
        let equal = compared.value == 0;
        // The destination is written in either case.
        self.write_operand(insn, 0, if equal { new } else { old })?;
        if !equal {
            write_register(self.regs, accumulator, old);
        }
        self.regs.rflags = compared.apply(self.regs.rflags);
        Ok(())
    }

    fn push(&mut self, insn: &Instruction) -> Result<(), Stop> {
        let size = if insn.stack_pointer_increment() == -2 { 2 } else { 8 };
        let value = self.read_operand(insn, 0)?;
        let rsp = self.regs.rsp.wrapping_sub(size as u64);
        self.write_value(rsp, size, value, Rights::Current).map_err(super::transfer::as_stack_fault)?;
        self.regs.rsp = rsp;
        Ok(())
    }

    /// STOS and MOVS, repeated or not.
    fn string(&mut self, insn: &Instruction) -> Result<Emulated, Stop> {
        let size = insn.memory_size().size();
        let wide = matches!(insn.op0_kind(), OpKind::MemoryESRDI);
        let (counter, source, destination) = if wide {
            (Register::RCX, Register::RSI, Register::RDI)
        } else {
            (Register::ECX, Register::ESI, Register::EDI)
        };
        let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
        let mut left = if repeats { read_register(self.regs, counter) } else { 1 };
        for _ in 0..left.min(MAX_REPEATS) {
            let moves = insn.op1_kind() != OpKind::Register;
            let value = if moves {
                let from = self.linear_address(insn, 1)?;
                self.read_value(from, size, Rights::Current)?
            } else {
                self.regs.rax
            };
            let to = self.linear_address(insn, 0)?;
            let stored = self.write_value(to, size, value, Rights::Current)?;
            self.step(destination, size);
            if moves {
                self.step(source, size);
            }
            left -= 1;
            if repeats {
                write_register(self.regs, counter, left);
            }
            if stored == Stored::Memory {
                // The CPU can do the rest faster.
                break;
            }
        }
        Ok(if left == 0 { Emulated::Done } else { Emulated::Unfinished })
    }

    fn step(&mut self, index: Register, size: usize) {
        let at = read_register(self.regs, index);
        let backwards = self.regs.rflags & rflags::DF != 0;
        let next = if backwards { at.wrapping_sub(size as u64) } else { at.wrapping_add(size as u64) };
        write_register(self.regs, index, next);
    }
}

/// Whether all register operands are general ones: MOV has forms for the others.
pub(crate) fn is_integer(insn: &Instruction) -> bool {
    (0..insn.op_count()).all(|op| insn.op_kind(op) != OpKind::Register || insn.op_register(op).is_gpr())
}

/// MOVSD is also the name of an SSE2 instruction.
fn is_string(insn: &Instruction) -> bool {
    matches!(insn.op0_kind(), OpKind::MemoryESRDI | OpKind::MemoryESEDI)
}

pub(crate) fn sign_extend(value: u64, size: usize) -> u64 {
    let shift = 64 - 8 * size.clamp(1, 8) as u32;
    ((truncate(value, size) << shift) as i64 >> shift) as u64
}
