//! PUSH, POP, ENTER and LEAVE, and the instructions that set or move single flags.

use iced_x86::{Instruction, Mnemonic, Register};

use super::Plain;
use crate::exec::operand::{is_integer, is_memory};
use crate::exec::status::Status;
use crate::interpreter::core::{Core, of_operand, on_stack};
use crate::interpreter::outside::Machine;
use crate::x86::exception::Exception;
use crate::x86::rflags::{AF, CF, DF, OF, PF, SF, ZF};

/// The flags that LAHF and SAHF move.
const IN_AH: u64 = CF | PF | AF | ZF | SF;

impl<X: Machine> Core<X> {
    pub(super) fn stack(&mut self, insn: &Instruction) -> Plain {
        use Mnemonic::*;
        match insn.mnemonic() {
            Push if is_integer(insn) => {
                let size = if insn.stack_pointer_increment() == -2 { 2 } else { 8 };
                let value = self.read(insn, 0)?;
                self.push(size, value)?;
            }
            Pop if is_integer(insn) => self.pop(insn)?,
            Enter => self.enter_frame(insn)?,
            Leave => {
                let size = if insn.code() == iced_x86::Code::Leavew { 2 } else { 8 };
                let frame = self.r[5];
                let value = self.load(frame, size).map_err(on_stack)?;
                self.r[4] = frame.wrapping_add(size as u64);
                self.set(if size == 2 { Register::BP } else { Register::RBP }, value);
            }
            Clc => self.status = self.status.with_carry(false),
            Stc => self.status = self.status.with_carry(true),
            Cmc => self.status = self.status.with_carry(!self.status.carry()),
            Cld => self.rflags &= !DF,
            Std => self.rflags |= DF,
            Lahf => {
                let flags = self.status.bits() & IN_AH | crate::x86::rflags::FIXED;
                self.set(Register::AH, flags);
            }
            Sahf => {
                let kept = self.status.bits() & OF;
                self.status = Status::from_bits(self.get(Register::AH) & IN_AH | kept);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// POP. RSP in the address of its operand is the one after the pop (SDM vol. 2, POP).
    fn pop(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let size = if insn.stack_pointer_increment() == 2 { 2 } else { 8 };
        let value = self.top(size)?;
        let before = self.r[4];
        self.r[4] = before.wrapping_add(size as u64);
        if !is_memory(insn.op0_kind()) {
            self.set(insn.op0_register(), value);
            return Ok(());
        }
        let stored = self.write(insn, 0, value);
        if stored.is_err() {
            self.r[4] = before;
        }
        stored.map_err(|e| of_operand(insn, e))
    }

    fn enter_frame(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let size = if insn.code() == iced_x86::Code::Enterw_imm16_imm8 { 2 } else { 8 };
        let (room, nesting) = (u64::from(insn.immediate16()), insn.immediate8_2nd() % 32);
        let (old_rsp, old_rbp) = (self.r[4], self.r[5]);
        let done = self.build_frame(size, room, nesting, old_rbp);
        if done.is_err() {
            (self.r[4], self.r[5]) = (old_rsp, old_rbp);
        }
        done
    }

    fn build_frame(&mut self, size: usize, room: u64, nesting: u8, old_rbp: u64) -> Result<(), Exception> {
        self.push(size, old_rbp)?;
        let frame = self.r[4];
        let mut display = old_rbp;
        for _ in 1..nesting {
            display = display.wrapping_sub(size as u64);
            let value = self.load(display, size).map_err(on_stack)?;
            self.push(size, value)?;
        }
        if nesting > 0 {
            self.push(size, frame)?;
        }
        self.r[4] = self.r[4].wrapping_sub(room);
        self.set(if size == 2 { Register::BP } else { Register::RBP }, frame);
        Ok(())
    }
}
