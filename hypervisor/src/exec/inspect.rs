//! Sensitive instructions that read privileged state without trapping, and those that any privilege level may execute.
//!
//! Only where every instruction passes by here can they have the machine's answers: under trap-and-emulate the
//! processor executes them itself, on the host's state.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::executor::Executor;
use super::operand::write_register;
use super::outside::{Attempt, Incomplete, Surroundings};
use super::privileged::Completion;
use crate::x86::descriptor::{Descriptor, error_of, is_null, rpl};
use crate::x86::exception::Exception;
use crate::x86::rflags;
use crate::x86::sensitive::Class;

/// The bits of a descriptor's upper half that LAR shows.
const ACCESS_RIGHTS: u64 = 0x00ff_ff00;

impl<M: Surroundings> Executor<'_, M> {
    /// Executes a sensitive instruction that does not trap; `None` for any other instruction.
    pub fn inspect(&mut self, insn: &Instruction) -> Option<Attempt<(), M>> {
        use Mnemonic::*;
        Some(match insn.mnemonic() {
            Pushf | Pushfd | Pushfq => self.push_flags(insn),
            Popf | Popfd | Popfq => self.pop_flags(insn),
            Lar | Lsl | Verr | Verw => self.inspect_descriptor(insn),
            Sgdt | Sidt | Sldt | Str | Smsw => self.table_instruction(insn),
            Mov | Push if Class::of(insn) == Some(Class::ReadSegment) => self.read_segment(insn),
            _ => return None,
        })
    }

    /// Executes an instruction that every privilege level may execute, though it is sensitive: loads of segment
    /// registers, far transfers, IRET. `None` for any other instruction.
    pub fn at_any_level(&mut self, insn: &Instruction) -> Option<Attempt<Completion<M::Event>, M>> {
        let class = Class::of(insn)?;
        matches!(class, Class::LoadSegment | Class::FarTransfer | Class::InterruptReturn)
            .then(|| self.execute(insn))
    }

    fn push_flags(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let size = if insn.mnemonic() == Mnemonic::Pushf { 2 } else { 8 };
        let flags = self.cpu.flags(self.regs) & !(rflags::VM | rflags::RF);
        let rsp = self.regs.rsp.wrapping_sub(size as u64);
        self.operands().store(rsp, size, flags).map_err(Incomplete::on_stack)?;
        self.regs.rsp = rsp;
        Ok(())
    }

    /// POPF: IOPL changes at CPL 0 only, IF only where the IOPL allows it.
    fn pop_flags(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let size = if insn.mnemonic() == Mnemonic::Popf { 2 } else { 8 };
        let rsp = self.regs.rsp;
        let popped = self.operands().load(rsp, size).map_err(Incomplete::on_stack)?;
        let old = self.cpu.flags(self.regs);
        let kept = rflags::VM
            | if size == 2 { !0xffff } else { 0 }
            | if self.cpu.user { rflags::IOPL } else { 0 }
            | if self.cpu.may_do_io() { 0 } else { rflags::IF };
        self.cpu.set_flags(self.regs, popped & !(kept | rflags::RF) | old & kept);
        self.regs.rsp = rsp.wrapping_add(size as u64);
        Ok(())
    }

    /// MOV and PUSH from a segment register.
    fn read_segment(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let is_push = insn.mnemonic() == Mnemonic::Push;
        let register = if is_push { insn.op0_register() } else { insn.op1_register() };
        let selectors = &self.cpu.selectors;
        let selector = u64::from(match register {
            Register::ES => selectors.es,
            Register::CS => selectors.cs,
            Register::SS => selectors.ss,
            Register::DS => selectors.ds,
            Register::FS => selectors.fs,
            _ => selectors.gs,
        });
        if !is_push {
            return self.operands().write(insn, 0, selector);
        }
        let size = if insn.stack_pointer_increment() == -2 { 2 } else { 8 };
        let rsp = self.regs.rsp.wrapping_sub(size as u64);
        self.operands().store(rsp, size, selector).map_err(Incomplete::on_stack)?;
        self.regs.rsp = rsp;
        Ok(())
    }

    /// LAR, LSL, VERR and VERW: ZF says whether the descriptor can be seen; if not, nothing else changes.
    fn inspect_descriptor(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let operand = insn.op_count().saturating_sub(1);
        let selector = match insn.op_kind(operand) {
            OpKind::Register => super::operand::read_register(self.regs, insn.op_register(operand)) as u16,
            _ => {
                let va = self.operands().address(insn, operand)?;
                self.operands().load(va, 2)? as u16
            }
        };
        let found = self.visible(insn.mnemonic(), selector)?;
        self.regs.rflags &= !rflags::ZF;
        if let Some(descriptor) = found {
            self.regs.rflags |= rflags::ZF;
            match insn.mnemonic() {
                Mnemonic::Lar => {
                    let rights = descriptor.0 >> 32 & ACCESS_RIGHTS;
                    write_register(self.regs, insn.op0_register(), rights);
                }
                Mnemonic::Lsl => {
                    write_register(self.regs, insn.op0_register(), descriptor.limit().into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The descriptor, if this instruction may see it from the current privilege level (SDM vol. 2, LAR, LSL, VERR).
    fn visible(&mut self, mnemonic: Mnemonic, selector: u16) -> Attempt<Option<Descriptor>, M> {
        if is_null(selector) {
            return Ok(None);
        }
        let d = match self.descriptor(selector) {
            Ok(d) => d,
            // Beyond the table's limit.
            Err(Incomplete::Exception(e)) if e == Exception::protection(error_of(selector)) => {
                return Ok(None);
            }
            Err(other) => return Err(other),
        };
        let system_type = d.0 >> 40 & 15;
        let exempt = d.is_code() && d.is_conforming();
        let reachable = exempt || (self.cpu.cpl() <= d.dpl() && rpl(selector) <= d.dpl());
        let fits = match mnemonic {
            // In 64-bit mode: LDT, available and busy TSS, and for LAR call gates.
            Mnemonic::Lar => !d.is_system() || matches!(system_type, 2 | 9 | 0xb | 0xc),
            Mnemonic::Lsl => !d.is_system() || matches!(system_type, 2 | 9 | 0xb),
            Mnemonic::Verr => d.is_readable(),
            _ => d.is_writable_data(),
        };
        Ok((fits && reachable).then_some(d))
    }
}
