//! Transfers of control in translated code: links to other blocks, lookups, calls that push the guest's own address.

use iced_x86::{Code, Instruction, OpKind};

use super::block::Block;
use super::lookup;
use crate::codegen::emitter::{RAX, RCX, RDX, Unsuitable};
use crate::codegen::recipe::{Recipe, Saved, Then};
use crate::codegen::state_page::TARGET;

/// What an instruction that may transfer control is to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// A conditional branch, after which the block goes on.
    Branch,
    /// LOOP, JRCXZ and their kin.
    Counted,
    Jump,
    Call,
    IndirectJump,
    IndirectCall,
    Return,
    /// It is an exception or a system call on the processor too.
    Native,
    /// Not implemented.
    Other,
}

impl Transfer {
    pub fn of(insn: &Instruction) -> Self {
        match insn.code() {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => Self::Jump,
            Code::Call_rel32_64 => Self::Call,
            Code::Jmp_rm64 => Self::IndirectJump,
            Code::Call_rm64 => Self::IndirectCall,
            Code::Retnq | Code::Retnq_imm16 => Self::Return,
            Code::Int3 | Code::Syscall | Code::Ud2 | Code::Ud0_r64_rm64 | Code::Ud1_r64_rm64 => Self::Native,
            Code::Ud0_r32_rm32 | Code::Ud1_r32_rm32 | Code::Ud0_r16_rm16 | Code::Ud1_r16_rm16 => Self::Native,
            _ if insn.op_count() == 1 && insn.op0_kind() != OpKind::NearBranch64 => Self::Other,
            _ if insn.is_jcc_short_or_near() => Self::Branch,
            _ if insn.is_loop() || insn.is_loopcc() || insn.is_jcx_short() => Self::Counted,
            _ => Self::Other,
        }
    }
}

impl Block<'_> {
    /// A jump to the translation of `target`.
    pub(super) fn link(&mut self, target: u64) {
        let at = self.emitter.near(Recipe::at(target), &[0xe9]);
        self.links.push((at, target));
    }

    /// JMP. An exit of the instruction before it comes back to it.
    pub(super) fn jump(&mut self, insn: &Instruction) {
        let at = self.emitter.near(Recipe::at(insn.ip()), &[0xe9]);
        self.links.push((at, insn.near_branch_target()));
    }

    /// Jcc.
    pub(super) fn branch(&mut self, insn: &Instruction) {
        let condition = insn.condition_code() as u8;
        // iced numbers conditions as instructions do, from 1 on.
        let at = self.emitter.near(Recipe::at(insn.ip()), &[0x0f, 0x80 | (condition.wrapping_sub(1) & 15)]);
        self.links.push((at, insn.near_branch_target()));
    }

    /// LOOP, LOOPE, LOOPNE, JRCXZ, JECXZ: they reach 127 bytes only.
    pub(super) fn counted(&mut self, insn: &Instruction, code: &[u8]) -> Result<(), Unsuitable> {
        let (_, opcode) = code.split_last().ok_or(Unsuitable::Form)?;
        self.emitter.op(Recipe::at(insn.ip()), opcode);
        // Over the jump that follows.
        self.emitter.raw(&[5]);
        self.link(insn.next_ip());
        self.link(insn.near_branch_target());
        Ok(())
    }

    /// CALL to a known target.
    pub(super) fn call(&mut self, insn: &Instruction) {
        self.emitter.push_value(Recipe::at(insn.ip()), insn.next_ip());
        let target = insn.near_branch_target();
        self.link(target);
        self.called.push(target);
        self.returns.push(insn.next_ip());
    }

    /// Loads the target of an indirect transfer into RCX, which is in its slot, and onto the state page.
    fn load_target(&mut self, insn: &Instruction) -> Result<Recipe, Unsuitable> {
        let before = Recipe::at(insn.ip());
        let e = &mut self.emitter;
        e.spill(before, RCX)?;
        if insn.op0_kind() == OpKind::Register {
            let register = insn.op0_register().number() as u8;
            if register != RCX {
                // mov rcx, register
                e.op(before, &[0x48 | (register >> 3) << 2, 0x89, 0xc1 | (register & 7) << 3]);
            }
        } else {
            e.with_operand(before, insn, (&[], true, &[0x8b]), RCX, 0)?;
        }
        let state = before.saved(Saved::RCX);
        e.store(state, TARGET, RCX)?;
        Ok(state)
    }

    /// JMP through a register or memory.
    pub(super) fn indirect_jump(&mut self, insn: &Instruction) -> Result<(), Unsuitable> {
        let state = self.load_target(insn)?;
        self.emitter.spill(state, RAX)?;
        lookup::lookup(&mut self.emitter, self.shared)
    }

    /// CALL through a register or memory. `guess` is where it would go now.
    pub(super) fn indirect_call(&mut self, insn: &Instruction, guess: Option<u64>) -> Result<(), Unsuitable> {
        let state = self.load_target(insn)?;
        self.returns.push(insn.next_ip());
        if let Some(guess) = guess
            && let Some(other) = lookup::guess(&mut self.emitter, state, guess, self.shared)?
        {
            let state = self.emitter.reload(state, RCX)?;
            self.emitter.push_value(state, insn.next_ip());
            self.link(guess);
            self.called.push(guess);
            self.emitter.land(other)?;
            self.emitter.load(Recipe::at(insn.ip()).saved(Saved::RCX), RCX, TARGET)?;
        }
        self.emitter.push_value(state, insn.next_ip());
        self.emitter.spill(to_target(), RAX)?;
        lookup::lookup(&mut self.emitter, self.shared)
    }

    /// RET.
    pub(super) fn ret(&mut self, insn: &Instruction) -> Result<(), Unsuitable> {
        let before = Recipe::at(insn.ip());
        let e = &mut self.emitter;
        e.spill(before, RCX)?;
        // pop rcx
        e.op(before, &[0x59]);
        let popped = before.saved(Saved::RCX).rsp(-8);
        e.store(popped, TARGET, RCX)?;
        if insn.op_count() == 1 {
            // lea rsp, [rsp + extra]
            let extra = i32::from(insn.immediate16());
            e.op(popped, &[0x48, 0x8d, 0xa4, 0x24]);
            e.raw(&extra.to_le_bytes());
        }
        if let Some(to) = self.returns_to
            && let Some(other) = lookup::guess(e, to_target(), to, self.shared)?
        {
            e.reload(to_target(), RCX)?;
            self.link(to);
            self.emitter.land(other)?;
            self.emitter.load(to_target(), RCX, TARGET)?;
        }
        self.emitter.spill(to_target(), RAX)?;
        lookup::lookup(&mut self.emitter, self.shared)
    }

    /// IRETQ.
    pub(super) fn iret(&mut self, insn: &Instruction) -> Result<(), Unsuitable> {
        let state = self.emitter.return_from_interrupt(insn)?;
        self.emitter.reload(state, RDX)?;
        lookup::lookup(&mut self.emitter, self.shared)
    }

    /// An instruction that stops the guest on every engine, with RIP at it or after it.
    pub(super) fn native(&mut self, insn: &Instruction, code: &[u8]) {
        self.emitter.op(Recipe::at(insn.ip()), code);
        self.link(insn.next_ip());
    }
}

/// The guest is at the target; RCX is in its slot.
fn to_target() -> Recipe {
    Recipe::at(0).then(Then::Target).saved(Saved::RCX)
}
