//! FXSAVE, FXRSTOR, MXCSR, and the x87 instructions that only move its state.

use iced_x86::{Instruction, Mnemonic, Register};

use super::Plain;
use crate::interpreter::core::{Core, of_operand};
use crate::interpreter::outside::Machine;
use crate::interpreter::vector::{AREA, MXCSR_MASK};
use crate::x86::control::{cr0, cr4};
use crate::x86::exception::Exception;
use crate::x86::xsave::XMM_REGISTERS;

/// #NM: the processor's floating point is another task's.
const NOT_AVAILABLE: u8 = 7;

impl<X: Machine> Core<X> {
    /// What every instruction of SSE checks first (SDM vol. 2, 2.4): that the kernel has enabled SSE, and that the
    /// registers are the running task's.
    pub(in crate::interpreter) fn check_vector(&self) -> Result<(), Exception> {
        if self.cpu.cr4 & cr4::OSFXSR == 0 {
            return Err(Exception::undefined());
        }
        self.check_x87()
    }

    fn check_x87(&self) -> Result<(), Exception> {
        if self.cpu.cr0 & cr0::TS == 0 { Ok(()) } else { Err(Exception::plain(NOT_AVAILABLE)) }
    }

    pub(super) fn vector_state(&mut self, insn: &Instruction) -> Plain {
        use Mnemonic::*;
        match insn.mnemonic() {
            Fxsave | Fxsave64 => self.save_area(insn)?,
            Fxrstor | Fxrstor64 => self.load_area(insn)?,
            Ldmxcsr => {
                self.check_vector()?;
                let value = self.read(insn, 0)? as u32;
                if value & !MXCSR_MASK != 0 {
                    return Err(Exception::protection(0));
                }
                self.vector.mxcsr = value;
            }
            Stmxcsr => {
                self.check_vector()?;
                let value = self.vector.mxcsr.into();
                self.write(insn, 0, value)?;
            }
            Fninit => {
                self.check_x87()?;
                self.vector.reset_x87();
            }
            Fldcw => {
                self.check_x87()?;
                let word = self.read(insn, 0)? as u16;
                self.vector.set_control(word);
            }
            Fnstcw => {
                self.check_x87()?;
                let word = self.vector.control().into();
                self.write(insn, 0, word)?;
            }
            Fnstsw => {
                self.check_x87()?;
                let word = self.vector.status().into();
                if insn.op0_register() == Register::AX {
                    self.set(Register::AX, word);
                } else {
                    self.write(insn, 0, word)?;
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn area_address(&self, insn: &Instruction) -> Result<u64, Exception> {
        self.check_x87()?;
        let va = self.address(insn, 0)?;
        if va.is_multiple_of(16) { Ok(va) } else { Err(Exception::protection(0)) }
    }

    fn save_area(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let va = self.area_address(insn)?;
        let (user, mut area) = (self.cpu.user, [0; AREA]);
        self.vector.save(&mut area);
        // What lies behind the registers belongs to the program.
        let written = area.get(..XMM_REGISTERS.end).ok_or(Exception::undefined())?;
        self.reach.write_bytes(va, written, user).map_err(|e| of_operand(insn, e)).map(drop)
    }

    fn load_area(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let va = self.area_address(insn)?;
        let (user, mut area) = (self.cpu.user, [0; AREA]);
        self.reach.read_bytes(va, &mut area, user).map_err(|e| of_operand(insn, e))?;
        self.vector.load(&area).ok_or(Exception::protection(0))
    }
}
