//! The time-stamp counter, FS and GS bases, fences and hints.

use std::sync::atomic::{Ordering, fence};

use iced_x86::{Instruction, Mnemonic};
use paravane_abi::addr::is_canonical;

use super::Plain;
use crate::interpreter::core::{Core, FS, GS, of_operand};
use crate::interpreter::outside::Machine;
use crate::x86::control::cr4;
use crate::x86::exception::Exception;

impl<X: Machine> Core<X> {
    pub(super) fn system(&mut self, insn: &Instruction) -> Plain {
        use Mnemonic::*;
        match insn.mnemonic() {
            Rdtsc | Rdtscp => {
                if self.cpu.user && self.cpu.cr4 & cr4::TSD != 0 {
                    return Err(Exception::protection(0));
                }
                let now = self.reach.machine.time_stamp();
                (self.r[0], self.r[2]) = (now & 0xffff_ffff, now >> 32);
                if insn.mnemonic() == Rdtscp {
                    // TSC_AUX: this machine lacks the register, and has one processor.
                    self.r[1] = 0;
                }
            }
            Rdpid => self.set(insn.op0_register(), 0),
            Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => self.base(insn)?,
            Mfence | Sfence | Lfence => fence(Ordering::SeqCst),
            // Memory is coherent, and a line has no state here; but an address that is not mapped faults.
            Clflush | Clflushopt | Clwb => {
                let va = self.address(insn, 0)?;
                self.load(va, 1).map_err(|e| of_operand(insn, e))?;
            }
            Nop | Pause | Endbr64 | Endbr32 | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta
            | Prefetchw | Prefetch | Prefetchwt1 | Reservednop | Wait => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn base(&mut self, insn: &Instruction) -> Result<(), Exception> {
        use Mnemonic::*;
        if self.cpu.cr4 & cr4::FSGSBASE == 0 {
            return Err(Exception::undefined());
        }
        let mnemonic = insn.mnemonic();
        let place = if matches!(mnemonic, Rdfsbase | Wrfsbase) { FS } else { GS };
        if matches!(mnemonic, Rdfsbase | Rdgsbase) {
            self.set(insn.op0_register(), self.r[place]);
            return Ok(());
        }
        let value = self.get(insn.op0_register());
        if !is_canonical(value) {
            return Err(Exception::protection(0));
        }
        self.r[place] = value;
        Ok(())
    }
}
