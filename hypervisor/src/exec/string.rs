//! String instructions: STOS, MOVS and LODS, and what INS and OUTS have in common with them.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::operand::{Operands, read_register, truncate, write_register};
use super::outside::{Attempt, Memory, Stored};
use crate::x86::registers::Regs;
use crate::x86::rflags;

/// Whether an instruction is repeated by a prefix.
fn is_repeated(insn: &Instruction) -> bool {
    insn.has_rep_prefix() || insn.has_repne_prefix()
}

/// The index register of a memory operand, and the counter of the same width; `None` for any other operand.
fn index_of(kind: OpKind) -> Option<(Register, Register)> {
    Some(match kind {
        OpKind::MemoryESRDI => (Register::RDI, Register::RCX),
        OpKind::MemorySegRSI => (Register::RSI, Register::RCX),
        OpKind::MemoryESEDI => (Register::EDI, Register::ECX),
        OpKind::MemorySegESI => (Register::ESI, Register::ECX),
        _ => return None,
    })
}

/// The elements that an instruction still has to transfer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repetition {
    counter: Option<Register>,
    left: u64,
}

impl Repetition {
    /// Of an instruction whose counter, if it is repeated, is this register.
    pub fn of(insn: &Instruction, counter: Register, regs: &Regs) -> Self {
        if is_repeated(insn) {
            Self { counter: Some(counter), left: read_register(regs, counter) }
        } else {
            Self { counter: None, left: 1 }
        }
    }

    /// How many elements are left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Counts one element, of which there was at least one left.
    pub fn count(&mut self, regs: &mut Regs) {
        self.left = self.left.saturating_sub(1);
        if let Some(counter) = self.counter {
            write_register(regs, counter, self.left);
        }
    }
}

/// Moves an index register on by an element of `size` bytes.
pub(super) fn step(regs: &mut Regs, index: Register, size: usize) {
    let at = read_register(regs, index);
    let backwards = regs.rflags & rflags::DF != 0;
    let next = if backwards { at.wrapping_sub(size as u64) } else { at.wrapping_add(size as u64) };
    write_register(regs, index, truncate(next, index.size()));
}

/// The index register and the counter of INS (`operand` 0) or OUTS (1).
pub(super) fn port_index(insn: &Instruction, operand: u32) -> Option<(Register, Register)> {
    index_of(insn.op_kind(operand))
}

/// A STOS, MOVS or LODS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StringMove {
    size: usize,
    /// RSI or ESI, of MOVS and LODS.
    source: Option<Register>,
    /// RDI or EDI, of STOS and MOVS.
    destination: Option<Register>,
    counter: Register,
}

impl StringMove {
    /// `None` for any other instruction. MOVSD is also the name of an SSE2 instruction.
    pub(crate) fn of(insn: &Instruction) -> Option<Self> {
        use Mnemonic::*;
        let known = matches!(
            insn.mnemonic(),
            Stosb | Stosw | Stosd | Stosq | Movsb | Movsw | Movsd | Movsq | Lodsb | Lodsw | Lodsd | Lodsq
        );
        let (to, from) = (index_of(insn.op0_kind()), index_of(insn.op1_kind()));
        let (_, counter) = to.or(from).filter(|_| known)?;
        let index = |of: Option<(Register, Register)>| of.map(|(index, _)| index);
        Some(Self { size: insn.memory_size().size(), source: index(from), destination: index(to), counter })
    }

    /// Whether it stores to memory: STOS and MOVS.
    pub(crate) fn stores(&self) -> bool {
        self.destination.is_some()
    }

    /// Whether it loads from memory: MOVS and LODS.
    pub(crate) fn loads(&self) -> bool {
        self.source.is_some()
    }

    /// Whether its addresses have 64 bits.
    pub(crate) fn is_wide(&self) -> bool {
        self.counter == Register::RCX
    }

    /// Transfers up to `limit` elements, and stops after a store to [`Stored::Memory`]: the CPU does the rest faster.
    /// Returns whether the instruction has ended.
    pub(crate) fn transfer<M: Memory>(
        &self,
        insn: &Instruction,
        operands: &mut Operands<'_, M>,
        limit: u64,
    ) -> Attempt<bool, M> {
        let mut repetition = Repetition::of(insn, self.counter, operands.regs);
        for _ in 0..repetition.left().min(limit) {
            let stored = self.element(insn, operands)?;
            repetition.count(operands.regs);
            if stored == Some(Stored::Memory) {
                break;
            }
        }
        Ok(repetition.left() == 0)
    }

    /// Transfers one element; returns what a store went to.
    fn element<M: Memory>(
        &self,
        insn: &Instruction,
        operands: &mut Operands<'_, M>,
    ) -> Attempt<Option<Stored>, M> {
        let value = match self.source {
            Some(_) => {
                let from = operands.address(insn, 1)?;
                operands.load(from, self.size)?
            }
            None => operands.regs.rax,
        };
        let mut stored = None;
        match self.destination {
            Some(_) => {
                let to = operands.address(insn, 0)?;
                stored = Some(operands.store(to, self.size, value)?);
            }
            None => write_register(operands.regs, insn.op0_register(), value),
        }
        for index in self.source.into_iter().chain(self.destination) {
            step(operands.regs, index, self.size);
        }
        Ok(stored)
    }
}
