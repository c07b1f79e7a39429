//! Shifts, products, quotients, and the instructions that count and move bits.

use iced_x86::{Instruction, Mnemonic, Register};

use super::Plain;
use crate::exec::alu::{bits, product, shift};
use crate::exec::operand::{operand_size, truncate};
use crate::interpreter::core::Core;
use crate::interpreter::outside::Machine;
use crate::x86::exception::{Exception, vector};

/// The registers of the lower and the upper half of a product or dividend with operands of `size` bytes.
fn halves(size: usize) -> (Register, Register) {
    match size {
        1 => (Register::AL, Register::AH),
        2 => (Register::AX, Register::DX),
        4 => (Register::EAX, Register::EDX),
        _ => (Register::RAX, Register::RDX),
    }
}

impl<X: Machine> Core<X> {
    pub(super) fn wide(&mut self, insn: &Instruction) -> Plain {
        use Mnemonic::*;
        match insn.mnemonic() {
            Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr => self.shift(insn)?,
            Shld | Shrd => {
                let (value, fill, count) =
                    (self.read_to_modify(insn, 0)?, self.read(insn, 1)?, self.read(insn, 2)?);
                let left = insn.mnemonic() == Shld;
                let computed = shift::double_shift(left, value, fill, count, operand_size(insn, 0));
                self.write(insn, 0, computed.value)?;
                self.apply(&computed);
            }
            Mul => self.multiply(insn, product::unsigned)?,
            Imul if insn.op_count() == 1 => self.multiply(insn, product::signed)?,
            Imul => {
                let first = insn.op_count() - 2;
                let (a, b) = (self.read(insn, first)?, self.read(insn, first + 1)?);
                let computed = product::signed(a, b, operand_size(insn, 0)).computed();
                self.write(insn, 0, computed.value)?;
                self.apply(&computed);
            }
            Mulx => {
                let size = operand_size(insn, 0);
                let (a, b) = (self.get(halves(size).1), self.read(insn, 2)?);
                let product = product::unsigned(a, b, size);
                self.set(insn.op1_register(), product.low);
                self.set(insn.op0_register(), product.high);
            }
            Div | Idiv => self.divide(insn)?,
            Bsf | Bsr | Tzcnt | Lzcnt | Popcnt => {
                let source = self.read(insn, 1)?;
                let Some((value, computed)) = bits::count(insn.mnemonic(), source, operand_size(insn, 0))
                else {
                    return Ok(false);
                };
                if let Some(value) = value {
                    self.write(insn, 0, value)?;
                }
                self.apply(&computed);
            }
            Andn | Bextr | Bzhi => {
                let (a, b) = (self.read(insn, 1)?, self.read(insn, 2)?);
                return self.manipulate(insn, a, b);
            }
            Blsi | Blsmsk | Blsr => {
                let a = self.read(insn, 1)?;
                return self.manipulate(insn, a, 0);
            }
            Sarx | Shlx | Shrx | Rorx | Pdep | Pext => {
                let (a, b) = (self.read(insn, 1)?, self.read(insn, 2)?);
                let Some(value) = bits::without_flags(insn.mnemonic(), a, b, operand_size(insn, 0)) else {
                    return Ok(false);
                };
                self.write(insn, 0, value)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn manipulate(&mut self, insn: &Instruction, a: u64, b: u64) -> Plain {
        let Some(computed) = bits::manipulate(insn.mnemonic(), a, b, operand_size(insn, 0)) else {
            return Ok(false);
        };
        self.write(insn, 0, computed.value)?;
        self.apply(&computed);
        Ok(true)
    }

    fn shift(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let (value, count) = (self.read_to_modify(insn, 0)?, self.read(insn, 1)?);
        let (size, carry) = (operand_size(insn, 0), self.status.carry());
        let computed =
            shift::shift(insn.mnemonic(), value, count, carry, size).ok_or(Exception::undefined())?;
        self.write(insn, 0, computed.value)?;
        self.apply(&computed);
        Ok(())
    }

    fn multiply(
        &mut self,
        insn: &Instruction,
        multiply: fn(u64, u64, usize) -> product::Product,
    ) -> Result<(), Exception> {
        let size = operand_size(insn, 0);
        let (low, high) = halves(size);
        let product = multiply(self.get(low), self.read(insn, 0)?, size);
        self.set(low, product.low);
        self.set(high, product.high);
        self.apply(&product.computed());
        Ok(())
    }

    fn divide(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let size = operand_size(insn, 0);
        let (low, high) = halves(size);
        let divisor = self.read(insn, 0)?;
        let (a, b) = (truncate(self.get(high), size), self.get(low));
        let is_signed = insn.mnemonic() == Mnemonic::Idiv;
        let (quotient, rest) =
            product::divide(is_signed, a, b, divisor, size).ok_or(Exception::plain(vector::DIVIDE))?;
        self.set(low, quotient);
        self.set(high, rest);
        Ok(())
    }
}
