//! MOVS, STOS, LODS, CMPS and SCAS. INS and OUTS are in [`crate::exec::port`].

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::exec::alu;
use crate::exec::operand::truncate;
use crate::interpreter::core::Core;
use crate::interpreter::outside::Machine;
use crate::x86::exception::Exception;
use crate::x86::rflags::{DF, TF};

/// How many elements of a repeated instruction are executed at once: interrupts wait for no more.
const MAX_ELEMENTS: u64 = 128;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Move,
    Store,
    Load,
    Compare,
    Scan,
}

fn operation(mnemonic: Mnemonic) -> Option<Operation> {
    use Mnemonic::*;
    Some(match mnemonic {
        Movsb | Movsw | Movsd | Movsq => Operation::Move,
        Stosb | Stosw | Stosd | Stosq => Operation::Store,
        Lodsb | Lodsw | Lodsd | Lodsq => Operation::Load,
        Cmpsb | Cmpsw | Cmpsd | Cmpsq => Operation::Compare,
        Scasb | Scasw | Scasd | Scasq => Operation::Scan,
        _ => return None,
    })
}

/// The operand's index register, and the counter of the same width.
fn index_of(kind: OpKind) -> Option<(Register, Register)> {
    Some(match kind {
        OpKind::MemoryESRDI => (Register::RDI, Register::RCX),
        OpKind::MemorySegRSI => (Register::RSI, Register::RCX),
        OpKind::MemoryESEDI => (Register::EDI, Register::ECX),
        OpKind::MemorySegESI => (Register::ESI, Register::ECX),
        _ => return None,
    })
}

impl<X: Machine> Core<X> {
    /// Executes a string instruction, or some elements of one; whether it has ended. `None` for any other instruction.
    pub(super) fn string(&mut self, insn: &Instruction) -> Result<Option<bool>, Exception> {
        let Some(operation) = operation(insn.mnemonic()) else { return Ok(None) };
        let mut operands = (0..insn.op_count()).filter_map(|op| index_of(insn.op_kind(op)));
        // MOVSD and CMPSD are also instructions of SSE2.
        let Some((_, counter)) = operands.next_back() else { return Ok(None) };
        if !insn.has_rep_prefix() && !insn.has_repne_prefix() {
            self.element(insn, operation)?;
            return Ok(Some(true));
        }
        let compares = matches!(operation, Operation::Compare | Operation::Scan);
        let while_equal = insn.has_rep_prefix();
        let limit = if self.rflags & TF != 0 { 1 } else { MAX_ELEMENTS };
        for _ in 0..limit {
            let left = self.get(counter);
            if left == 0 {
                return Ok(Some(true));
            }
            self.element(insn, operation)?;
            self.set(counter, left - 1);
            if compares && self.status.is_zero() != while_equal {
                return Ok(Some(true));
            }
            if self.reach.attention {
                break;
            }
        }
        Ok(Some(self.get(counter) == 0))
    }

    fn element(&mut self, insn: &Instruction, operation: Operation) -> Result<(), Exception> {
        let size = insn.memory_size().size();
        match operation {
            Operation::Move => {
                let from = self.address(insn, 1)?;
                let value = self.load(from, size)?;
                let to = self.address(insn, 0)?;
                self.store(to, size, value)?;
            }
            Operation::Store => {
                let to = self.address(insn, 0)?;
                self.store(to, size, self.r[0])?;
            }
            Operation::Load => {
                let from = self.address(insn, 1)?;
                let value = self.load(from, size)?;
                self.set(insn.op0_register(), value);
            }
            Operation::Compare => {
                let (first, second) = (self.address(insn, 0)?, self.address(insn, 1)?);
                let a = self.load(first, size)?;
                let b = self.load(second, size)?;
                self.apply(&alu::sub(a, b, false, size));
            }
            Operation::Scan => {
                let at = self.address(insn, 1)?;
                let b = self.load(at, size)?;
                self.apply(&alu::sub(truncate(self.r[0], size), b, false, size));
            }
        }
        for operand in 0..insn.op_count() {
            if let Some((index, _)) = index_of(insn.op_kind(operand)) {
                let at = self.get(index);
                let step = size as u64;
                let next = if self.rflags & DF != 0 { at.wrapping_sub(step) } else { at.wrapping_add(step) };
                self.set(index, next);
            }
        }
        Ok(())
    }
}
