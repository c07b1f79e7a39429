//! Ordinary instructions whose memory operand must not be accessed natively: stores to page tables in use, and accesses
//! to device registers or to nothing.
//!
//! Moves, exchanges, integer and bit arithmetic and string stores of general registers: what compilers and kernels use
//! on page tables. Stores of vector registers are missing, because vector registers are in the engine.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::alu;
use super::alu::Computed;
use super::operand::{
    Operands, is_integer, operand_size, read_register, sign_extend, truncate, write_register,
};
use super::outside::{Attempt, Incomplete, Memory};
use super::string::StringMove;
use crate::x86::registers::Regs;
use crate::x86::rflags;

/// How many elements of a repeated string instruction one exit transfers: a page of quadwords.
const MAX_REPEATS: u64 = 512;

/// How far an instruction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is done; RIP has still to be set to the next instruction.
    Done,
    /// A repeated instruction has elements left; RIP stays.
    Unfinished,
    /// It is not implemented here; nothing was changed.
    Unknown,
}

impl<M: Memory> Operands<'_, M> {
    /// Executes an instruction that accesses memory.
    pub fn execute(&mut self, insn: &Instruction) -> Attempt<Progress, M> {
        use Mnemonic::*;
        if let Some(string) = StringMove::of(insn).filter(StringMove::stores) {
            let ended = string.transfer(insn, self, MAX_REPEATS)?;
            return Ok(if ended { Progress::Done } else { Progress::Unfinished });
        }
        match insn.mnemonic() {
            Xchg => self.exchange(insn)?,
            Xadd => self.exchange_add(insn)?,
            Cmpxchg => self.compare_exchange(insn)?,
            Push if is_integer(insn) => self.push(insn)?,
            Bts | Btr | Btc => self.bit_operation(insn)?,
            Cmp | Test => {
                let Some(computed) = self.compute(insn)? else { return Ok(Progress::Unknown) };
                self.regs.rflags = computed.apply(self.regs.rflags);
            }
            _ => {
                let Some(computed) = self.compute(insn)? else { return Ok(Progress::Unknown) };
                self.write(insn, 0, computed.value)?;
                self.regs.rflags = computed.apply(self.regs.rflags);
            }
        }
        Ok(Progress::Done)
    }

    /// The value for the first operand, from it and the second.
    fn compute(&mut self, insn: &Instruction) -> Attempt<Option<Computed>, M> {
        let mnemonic = insn.mnemonic();
        let size = operand_size(insn, 0);
        let carry = self.regs.rflags & rflags::CF != 0;
        if !alu::is_known(mnemonic) || !matches!(size, 1 | 2 | 4 | 8) || !is_integer(insn) {
            return Ok(None);
        }
        let a = if alu::is_move(mnemonic) { 0 } else { self.read(insn, 0)? };
        let mut b = if insn.op_count() > 1 { self.read(insn, 1)? } else { 0 };
        if alu::extends_sign(mnemonic) {
            b = sign_extend(b, operand_size(insn, 1));
        }
        Ok(alu::compute(mnemonic, a, b, carry, size))
    }

    /// BTS, BTR and BTC. A bit number in a register may lie outside the operand: it then names a bit of
    /// memory before or after it.
    fn bit_operation(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let size = insn.memory_size().size();
        let mut va = self.address(insn, 0)?;
        let mut number = self.read(insn, 1)?;
        if insn.op1_kind() == OpKind::Register {
            let signed = sign_extend(number, size) as i64;
            let operands_away = signed.div_euclid(size as i64 * 8);
            va = va.wrapping_add_signed(operands_away.wrapping_mul(size as i64));
            number = signed as u64;
        }
        let bit = (number % (size as u64 * 8)) as u32;
        let old = self.load(va, size)?;
        let computed = alu::change_bit(insn.mnemonic(), old, bit);
        self.store(va, size, computed.value)?;
        self.regs.rflags = computed.apply(self.regs.rflags);
        Ok(())
    }

    fn exchange(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let (a, b) = (self.read(insn, 0)?, self.read(insn, 1)?);
        // Memory first: only that can fault.
        let memory = if insn.op0_kind() == OpKind::Register { 1 } else { 0 };
        let (to_memory, to_register) = if memory == 0 { (b, a) } else { (a, b) };
        self.write(insn, memory, to_memory)?;
        self.write(insn, 1 - memory, to_register)
    }

    fn exchange_add(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let (old, b) = (self.read(insn, 0)?, self.read(insn, 1)?);
        let sum = alu::add(old, b, false, operand_size(insn, 0));
        self.write(insn, 0, sum.value)?;
        self.write(insn, 1, old)?;
        self.regs.rflags = sum.apply(self.regs.rflags);
        Ok(())
    }

    fn compare_exchange(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let (old, new) = (self.read(insn, 0)?, self.read(insn, 1)?);
        let comparison = Comparison::of(self.regs, old, operand_size(insn, 0));
        // The destination is written in either case.
        self.write(insn, 0, if comparison.is_equal() { new } else { old })?;
        if !comparison.is_equal() {
            write_register(self.regs, comparison.accumulator, old);
        }
        self.regs.rflags = comparison.difference.apply(self.regs.rflags);
        Ok(())
    }

    fn push(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let size = if insn.stack_pointer_increment() == -2 { 2 } else { 8 };
        let value = self.read(insn, 0)?;
        let rsp = self.regs.rsp.wrapping_sub(size as u64);
        self.store(rsp, size, value).map_err(Incomplete::on_stack)?;
        self.regs.rsp = rsp;
        Ok(())
    }
}

/// What CMPXCHG compares.
struct Comparison {
    accumulator: Register,
    difference: Computed,
}

impl Comparison {
    /// The accumulator with a destination of `size` bytes that holds `old`.
    fn of(regs: &Regs, old: u64, size: usize) -> Self {
        let accumulator = match size {
            1 => Register::AL,
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        let difference = alu::sub(read_register(regs, accumulator), old, false, size);
        Self { accumulator, difference }
    }

    fn is_equal(&self) -> bool {
        self.difference.value == 0
    }
}

/// What an instruction with one memory operand does, once its store is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Update {
    /// What it stores; `None` where CMPXCHG finds another value, and leaves the destination as it is.
    pub store: Option<u64>,
    /// RFLAGS afterwards.
    pub flags: u64,
    /// A register that changes too.
    pub register: Option<(Register, u64)>,
}

/// Computes what an instruction does whose memory operand, of number `memory`, holds `old`. For machines that must
/// accept the store before anything changes.
///
/// `None` for an instruction that only reads the operand, that is not implemented here, or whose bit number names a bit
/// outside of the operand.
pub(crate) fn update(insn: &Instruction, regs: &Regs, memory: u32, old: u64) -> Option<Update> {
    use Mnemonic::*;
    if !is_integer(insn) {
        return None;
    }
    let size = operand_size(insn, memory);
    let source = other_operand(insn, regs, memory)?;
    let with = |computed: Computed| Update {
        store: Some(computed.value),
        flags: computed.apply(regs.rflags),
        register: None,
    };
    Some(match insn.mnemonic() {
        Xchg => {
            let register = insn.op_register(1 - memory);
            Update { register: Some((register, old)), ..with(alu::plain(source)) }
        }
        Xadd => {
            let sum = alu::add(old, source, false, size);
            Update { register: Some((insn.op1_register(), old)), ..with(sum) }
        }
        Cmpxchg => {
            let comparison = Comparison::of(regs, old, size);
            let equal = comparison.is_equal();
            Update {
                store: equal.then_some(source),
                flags: comparison.difference.apply(regs.rflags),
                register: (!equal).then_some((comparison.accumulator, old)),
            }
        }
        Bts | Btr | Btc => with(alu::change_bit(insn.mnemonic(), old, bit_inside(insn, source, size)?)),
        Cmp | Test => return None,
        mnemonic if memory == 0 => {
            with(alu::compute(mnemonic, old, source, regs.rflags & rflags::CF != 0, size)?)
        }
        _ => return None,
    })
}

/// The operand that is not the memory one; 0 where there is none.
fn other_operand(insn: &Instruction, regs: &Regs, memory: u32) -> Option<u64> {
    let Some(operand) = (0..insn.op_count()).find(|op| *op != memory) else { return Some(0) };
    match insn.op_kind(operand) {
        OpKind::Register => Some(read_register(regs, insn.op_register(operand))),
        _ => insn.try_immediate(operand).ok(),
    }
}

/// The bit that BT and its kin name in an operand of `size` bytes; `None` where a number in a register names one
/// beyond the operand.
pub(crate) fn bit_inside(insn: &Instruction, number: u64, size: usize) -> Option<u32> {
    let bits = size as u64 * 8;
    if insn.op1_kind() == OpKind::Register && truncate(number, size) >= bits {
        return None;
    }
    u32::try_from(number % bits).ok()
}
