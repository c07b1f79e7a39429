//! Instructions that go to another segment or privilege level: IRET, far RET, JMP and CALL, SYSCALL, SYSRET.
//!
//! An IRET to the same privilege level and the engine's own selectors never gets here: it does not trap.

use iced_x86::{Instruction, OpKind};
use paravane_abi::addr::is_canonical;

use super::executor::{Executor, Rights};
use super::outside::{Attempt, Incomplete, Surroundings};
use crate::x86::control::efer;
use crate::x86::decode::SYSCALL_LENGTH;
use crate::x86::descriptor::{error_of, is_null, rpl};
use crate::x86::exception::Exception;
use crate::x86::rflags;

/// The target of a return.
struct Target {
    rip: u64,
    cs: u16,
    rsp: u64,
    ss: u16,
}

impl<M: Surroundings> Executor<'_, M> {
    /// The `N` words of `size` bytes on top of the stack.
    fn peek_stack<const N: usize>(&mut self, size: usize) -> Attempt<[u64; N], M> {
        let mut words = [0; N];
        let mut at = self.regs.rsp;
        for word in &mut words {
            *word = self.read_value(at, size, Rights::Current).map_err(Incomplete::on_stack)?;
            at = at.wrapping_add(size as u64);
        }
        Ok(words)
    }

    /// IRET with operands of `size` bytes. In 64-bit mode it always pops RSP and SS too.
    pub(super) fn interrupt_return(&mut self, size: usize) -> Attempt<(), M> {
        let [rip, cs, flags, rsp, ss] = self.peek_stack::<5>(size)?;
        let target = Target { rip, cs: cs as u16, rsp, ss: ss as u16 };
        self.check_return(&target)?;
        let privileged = if self.cpu.user { rflags::IOPL } else { 0 };
        let kept = privileged | if self.cpu.may_do_io() { 0 } else { rflags::IF };
        let old = self.cpu.flags(self.regs);
        self.cpu.set_flags(self.regs, flags & !kept | old & kept);
        self.finish_return(&target)
    }

    /// Far RET with operands of `size` bytes. It also removes `extra` bytes of arguments from the stack.
    pub(super) fn far_return(&mut self, size: usize, extra: u64) -> Attempt<(), M> {
        let [rip, cs] = self.peek_stack::<2>(size)?;
        let mut target = Target { rip, cs: cs as u16, rsp: self.regs.rsp, ss: self.cpu.selectors.ss };
        let popped = 2 * size as u64 + extra;
        if rpl(target.cs) > self.cpu.cpl() {
            let at = self.regs.rsp.wrapping_add(popped);
            target.rsp = self.read_value(at, size, Rights::Current).map_err(Incomplete::on_stack)?;
            let ss_at = at.wrapping_add(size as u64);
            target.ss = self.read_value(ss_at, size, Rights::Current).map_err(Incomplete::on_stack)? as u16;
            self.check_return(&target)?;
            target.rsp = target.rsp.wrapping_add(extra);
        } else {
            self.check_return(&target)?;
            target.rsp = target.rsp.wrapping_add(popped);
        }
        self.finish_return(&target)
    }

    fn check_return(&mut self, target: &Target) -> Attempt<(), M> {
        if rpl(target.cs) < self.cpu.cpl() {
            return Err(Exception::protection(error_of(target.cs)).into());
        }
        self.check_code_segment(target.cs)?;
        if !is_canonical(target.rip) {
            return Err(Exception::protection(0).into());
        }
        let level = rpl(target.cs);
        if is_null(target.ss) && level == 0 && rpl(target.ss) == 0 {
            return Ok(());
        }
        self.check_stack_segment(target.ss, level)
    }

    fn finish_return(&mut self, target: &Target) -> Attempt<(), M> {
        (self.regs.rip, self.regs.rsp) = (target.rip, target.rsp);
        (self.cpu.selectors.cs, self.cpu.selectors.ss) = (target.cs, target.ss);
        self.set_user(rpl(target.cs) == 3)
    }

    /// JMP or CALL through a far pointer in memory, at the same level.
    pub(super) fn far_branch(&mut self, insn: &Instruction, is_call: bool) -> Attempt<(), M> {
        let size = insn.memory_size().size().saturating_sub(2);
        let at = self.operands().address(insn, 0)?;
        let rip = self.read_value(at, size, Rights::Current)?;
        let cs = self.read_value(at.wrapping_add(size as u64), 2, Rights::Current)? as u16;
        // CS keeps the current privilege level, whatever the selector's RPL is.
        let cs = cs & !3 | self.cpu.cpl();
        self.check_code_segment(cs)?;
        if !is_canonical(rip) {
            return Err(Exception::protection(0).into());
        }
        if is_call {
            let (old_cs, next) = (u64::from(self.cpu.selectors.cs), insn.next_ip());
            let rsp = self.regs.rsp.wrapping_sub(2 * size as u64);
            let user = self.cpu.user;
            self.outside.probe_write(rsp, 2 * size, user).map_err(Incomplete::on_stack)?;
            self.write_value(rsp, size, next, Rights::Current)?;
            self.write_value(rsp.wrapping_add(size as u64), size, old_cs, Rights::Current)?;
            self.regs.rsp = rsp;
        }
        self.regs.rip = rip;
        self.cpu.selectors.cs = cs;
        Ok(())
    }

    /// SYSCALL. Engines report it with RIP after the instruction.
    pub fn syscall(&mut self) -> Attempt<(), M> {
        if self.cpu.efer & efer::SCE == 0 {
            self.regs.rip = self.regs.rip.wrapping_sub(SYSCALL_LENGTH);
            return Err(Exception::undefined().into());
        }
        let flags = self.cpu.flags(self.regs);
        self.regs.rcx = self.regs.rip;
        self.regs.r11 = flags & !rflags::RF;
        let selector = (self.cpu.star >> 32) as u16;
        self.cpu.selectors.cs = selector & !3;
        self.cpu.selectors.ss = (selector & !3).wrapping_add(8);
        self.cpu.set_flags(self.regs, flags & !(self.cpu.syscall_mask | rflags::RF));
        self.regs.rip = self.cpu.lstar;
        self.set_user(false)
    }

    /// SYSRET to 64-bit code.
    pub(super) fn sysret(&mut self) -> Attempt<(), M> {
        if self.cpu.efer & efer::SCE == 0 {
            return Err(Exception::undefined().into());
        }
        if !is_canonical(self.regs.rcx) {
            return Err(Exception::protection(0).into());
        }
        let selector = (self.cpu.star >> 48) as u16;
        self.cpu.selectors.cs = selector.wrapping_add(16) | 3;
        self.cpu.selectors.ss = selector.wrapping_add(8) | 3;
        let flags = self.regs.r11 & !(rflags::RF | rflags::VM);
        self.cpu.set_flags(self.regs, flags);
        self.regs.rip = self.regs.rcx;
        self.set_user(true)
    }
}

/// Operand size of a return.
pub(super) fn operand_bytes(insn: &Instruction) -> usize {
    use iced_x86::Code::*;
    match insn.code() {
        Iretq | Retfq | Retfq_imm16 => 8,
        Iretd | Retfd | Retfd_imm16 => 4,
        _ => 2,
    }
}

/// The immediate of a far RET.
pub(super) fn return_extra(insn: &Instruction) -> u64 {
    let has = insn.op_count() > 0 && insn.op0_kind() == OpKind::Immediate16;
    if has { insn.immediate16().into() } else { 0 }
}
