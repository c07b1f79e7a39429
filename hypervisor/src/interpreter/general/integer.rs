//! Moves, arithmetic, logic and exchanges of general registers and memory.

use std::sync::atomic::{Ordering, fence};

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Plain;
use crate::exec::alu;
use crate::exec::alu::bits;
use crate::exec::operand::{is_integer, is_memory, operand_size, sign_extend, truncate};
use crate::interpreter::core::{Core, of_operand};
use crate::interpreter::outside::Machine;
use crate::x86::exception::Exception;
use crate::x86::rflags::{CF, OF, ZF};

impl<X: Machine> Core<X> {
    pub(super) fn integer(&mut self, insn: &Instruction) -> Plain {
        use Mnemonic::*;
        if insn.has_lock_prefix() || insn.mnemonic() == Xchg {
            // Devices see this access in order with those around it.
            fence(Ordering::SeqCst);
        }
        match insn.mnemonic() {
            Lea => self.load_address(insn)?,
            Xchg => self.exchange(insn)?,
            Xadd => self.exchange_add(insn)?,
            Cmpxchg => self.compare_exchange(insn)?,
            Cmpxchg8b | Cmpxchg16b => self.compare_exchange_pair(insn)?,
            Bt | Bts | Btr | Btc => self.bit(insn)?,
            Bswap => {
                let register = insn.op0_register();
                let swapped = bits::swap_bytes(self.get(register), register.size());
                self.set(register, swapped.value);
            }
            Movbe => {
                let value = self.read(insn, 1)?;
                let swapped = bits::swap_bytes(value, operand_size(insn, 0));
                self.write(insn, 0, swapped.value)?;
            }
            Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo => self.spread_sign(insn.mnemonic()),
            Adcx | Adox => {
                let flag = if insn.mnemonic() == Adcx { CF } else { OF };
                let (a, b) = (self.read(insn, 0)?, self.read(insn, 1)?);
                let sum = bits::add_by(flag, a, b, self.status.bits(), operand_size(insn, 0));
                self.write(insn, 0, sum.value)?;
                self.apply(&sum);
            }
            Xlatb => {
                let va = self.address(insn, 0)?;
                let value = self.load(va, 1)?;
                self.set(Register::AL, value);
            }
            Cmp | Test => {
                let Some(computed) = self.compute(insn)? else { return Ok(false) };
                self.apply(&computed);
            }
            mnemonic if alu::is_known(mnemonic) && is_integer(insn) => {
                let Some(computed) = self.compute(insn)? else { return Ok(false) };
                self.write(insn, 0, computed.value)?;
                self.apply(&computed);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The value for the first operand, from it and the second.
    fn compute(&mut self, insn: &Instruction) -> Result<Option<alu::Computed>, Exception> {
        let mnemonic = insn.mnemonic();
        let size = operand_size(insn, 0);
        if !is_integer(insn) {
            return Ok(None);
        }
        let a = match mnemonic {
            _ if alu::is_move(mnemonic) => 0,
            Mnemonic::Cmp | Mnemonic::Test => self.read(insn, 0)?,
            _ => self.read_to_modify(insn, 0)?,
        };
        let mut b = if insn.op_count() > 1 { self.read(insn, 1)? } else { 0 };
        if alu::extends_sign(mnemonic) {
            b = sign_extend(b, operand_size(insn, 1));
        }
        Ok(alu::compute(mnemonic, a, b, self.status.carry(), size))
    }

    /// LEA: the offset, without a segment's base.
    fn load_address(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let value = |register: Register, _, _| {
            Some(if register.is_segment_register() { 0 } else { self.get(register) })
        };
        let offset = insn.virtual_address(1, 0, value).ok_or(Exception::undefined())?;
        self.set(insn.op0_register(), offset);
        Ok(())
    }

    fn exchange(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let (a, b) = (self.read_to_modify(insn, 0)?, self.read_to_modify(insn, 1)?);
        // Memory first: only that can fault.
        let memory = if insn.op0_kind() == OpKind::Register { 1 } else { 0 };
        let (to_memory, to_register) = if memory == 0 { (b, a) } else { (a, b) };
        self.write(insn, memory, to_memory)?;
        self.write(insn, 1 - memory, to_register)
    }

    fn exchange_add(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let (old, b) = (self.read_to_modify(insn, 0)?, self.read(insn, 1)?);
        let sum = alu::add(old, b, false, operand_size(insn, 0));
        if is_memory(insn.op0_kind()) {
            self.write(insn, 0, sum.value)?;
            self.set(insn.op1_register(), old);
        } else {
            // Of one and the same register the sum remains.
            self.set(insn.op1_register(), old);
            self.set(insn.op0_register(), sum.value);
        }
        self.apply(&sum);
        Ok(())
    }

    fn compare_exchange(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let (old, new) = (self.read_to_modify(insn, 0)?, self.read(insn, 1)?);
        let accumulator = match operand_size(insn, 0) {
            1 => Register::AL,
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        let difference = alu::sub(self.get(accumulator), old, false, operand_size(insn, 0));
        let equal = difference.value == 0;
        // A destination in memory is written in either case; of two registers only one changes.
        if equal {
            self.write(insn, 0, new)?;
        } else {
            if is_memory(insn.op0_kind()) {
                self.write(insn, 0, old)?;
            }
            self.set(accumulator, old);
        }
        self.apply(&difference);
        Ok(())
    }

    /// CMPXCHG8B and CMPXCHG16B.
    fn compare_exchange_pair(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let half = insn.memory_size().size() / 2;
        let va = self.address(insn, 0)?;
        if half == 8 && !va.is_multiple_of(16) {
            return Err(Exception::protection(0));
        }
        let user = self.cpu.user;
        let mut bytes = [0; 16];
        self.reach.check_write(va, 2 * half, user).map_err(|e| of_operand(insn, e))?;
        let memory = bytes.get_mut(..2 * half).ok_or(Exception::undefined())?;
        self.reach.read_bytes(va, memory, user).map_err(|e| of_operand(insn, e))?;
        let old = u128::from_le_bytes(bytes);
        let (low, high) = (old as u64, (old >> (8 * half)) as u64);
        let (low, high) = (truncate(low, half), truncate(high, half));
        let equal = low == truncate(self.r[0], half) && high == truncate(self.r[2], half);
        let new = if equal {
            u128::from(truncate(self.r[3], half)) | u128::from(truncate(self.r[1], half)) << (8 * half)
        } else {
            old
        };
        let new = new.to_le_bytes();
        let stored = new.get(..2 * half).ok_or(Exception::undefined())?;
        self.reach.write_bytes(va, stored, user).map_err(|e| of_operand(insn, e))?;
        if !equal {
            (self.r[0], self.r[2]) = (low, high);
        }
        let flags = self.status.bits() & !ZF | if equal { ZF } else { 0 };
        self.status = crate::exec::status::Status::from_bits(flags);
        Ok(())
    }

    /// BT and its kin. A bit number in a register may lie outside a memory operand: it then names a bit of memory
    /// before or after it.
    fn bit(&mut self, insn: &Instruction) -> Result<(), Exception> {
        let size = operand_size(insn, 0);
        let mut number = self.read(insn, 1)?;
        let width = 8 * size as u64;
        let by_register = insn.op1_kind() == OpKind::Register;
        if !is_memory(insn.op0_kind()) {
            let old = self.read(insn, 0)?;
            let computed = changed(insn.mnemonic(), old, (number % width) as u32);
            if insn.mnemonic() != Mnemonic::Bt {
                self.write(insn, 0, computed.value)?;
            }
            self.apply(&computed);
            return Ok(());
        }
        let mut va = self.address(insn, 0)?;
        if by_register {
            let signed = sign_extend(number, size).cast_signed();
            let operands_away = signed.div_euclid(width.cast_signed());
            va = va.wrapping_add_signed(operands_away.wrapping_mul(size as i64));
            if insn.memory_base().is_gpr32() || insn.memory_index().is_gpr32() {
                va = truncate(va, 4);
            }
            number = signed.cast_unsigned();
        }
        if insn.mnemonic() != Mnemonic::Bt {
            let user = self.cpu.user;
            self.reach.check_write(va, size, user).map_err(|e| of_operand(insn, e))?;
        }
        let old = self.load(va, size).map_err(|e| of_operand(insn, e))?;
        let computed = changed(insn.mnemonic(), old, (number % width) as u32);
        if insn.mnemonic() != Mnemonic::Bt {
            self.store(va, size, computed.value).map_err(|e| of_operand(insn, e))?;
        }
        self.apply(&computed);
        Ok(())
    }

    fn spread_sign(&mut self, mnemonic: Mnemonic) {
        use Mnemonic::*;
        let (from, to) = match mnemonic {
            Cbw => (Register::AL, Register::AX),
            Cwde => (Register::AX, Register::EAX),
            Cdqe => (Register::EAX, Register::RAX),
            Cwd => (Register::AX, Register::DX),
            Cdq => (Register::EAX, Register::EDX),
            _ => (Register::RAX, Register::RDX),
        };
        let value = self.get(from);
        let widens = matches!(mnemonic, Cbw | Cwde | Cdqe);
        let spread = if widens {
            sign_extend(value, from.size())
        } else if bits::is_negative(value, from.size()) {
            u64::MAX
        } else {
            0
        };
        self.set(to, spread);
    }
}

fn changed(mnemonic: Mnemonic, old: u64, number: u32) -> alu::Computed {
    if mnemonic == Mnemonic::Bt { alu::bit(old, old, number) } else { alu::change_bit(mnemonic, old, number) }
}
