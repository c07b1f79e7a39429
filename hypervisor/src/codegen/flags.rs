//! Templates of the instructions about IF and the flags word: CLI, STI, PUSHF, POPF.
//!
//! In RFLAGS of the processor IF is always 1, and IOPL 0. The kernel's are on the state page.

use iced_x86::{Code, Instruction};

use super::emitter::{Dead, Emitter, RAX, RCX, Unsuitable};
use super::recipe::{Recipe, Saved, Then};
use super::state_page::{FLAGS, INTERRUPTS, IO_PRIVILEGE, PENDING};
use crate::x86::rflags;

/// Flags that POPF and IRETQ load in our code. With any other the host does it.
pub(super) const PLAIN_FLAGS: u64 = rflags::STATUS | rflags::DF | rflags::IF | rflags::ID | rflags::FIXED;

/// IF in the low half of a word.
const IF: i32 = rflags::IF as i32;
/// What IOPL's word is for an IOPL of 0.
const NO_IO_PRIVILEGE: i32 = -IF;
const JRCXZ: u8 = 0xe3;
const JE: u8 = 0x74;

impl Emitter<'_> {
    pub(super) fn cli(&mut self, insn: &Instruction) -> Result<(), Unsuitable> {
        self.store_value(Recipe::at(insn.ip()), INTERRUPTS, 0)
    }

    pub(super) fn sti(&mut self, insn: &Instruction, dead: Dead) -> Result<(), Unsuitable> {
        let before = Recipe::at(insn.ip());
        if dead.flags {
            // cmp qword [pending], 0
            self.on_state(before, &[0x48, 0x83, 0x3d], PENDING, &[0])?;
            let nothing_pends = self.short(before, JE);
            self.callout_from(before);
            self.land(nothing_pends)?;
            return self.store_value(before, INTERRUPTS, IF);
        }
        let with_rcx = before.saved(Saved::RCX);
        self.spill(before, RCX)?;
        self.load(before, RCX, PENDING)?;
        let nothing_pends = self.short(with_rcx, JRCXZ);
        self.callout_from(with_rcx);
        self.land(nothing_pends)?;
        self.store_value(with_rcx, INTERRUPTS, IF)?;
        self.load(
            Recipe::at(insn.next_ip()).saved(Saved::RCX).then(Then::Shadow),
            RCX,
            super::state_page::slot(RCX),
        )
    }

    /// PUSHFQ pushes the processor's flags; IF and IOPL are then put right, without changing a flag.
    pub(super) fn pushf(&mut self, insn: &Instruction) -> Result<(), Unsuitable> {
        if insn.code() != Code::Pushfq {
            return Err(Unsuitable::Form);
        }
        let before = Recipe::at(insn.ip());
        let both = Saved::RAX.and(Saved::RCX);
        self.spill(before, RAX)?;
        self.spill(before, RCX)?;
        self.op(before, &[0x9c]);
        let pushed = before.rsp(8);
        self.load(pushed, RCX, INTERRUPTS)?;
        self.load(pushed.saved(Saved::RCX), RAX, IO_PRIVILEGE)?;
        let pushed = pushed.saved(both);
        // lea rcx, [rcx + rax]; mov rax, [rsp]; lea rax, [rax + rcx]; mov [rsp], rax
        self.op(pushed, &[0x48, 0x8d, 0x0c, 0x01]);
        self.op(pushed, &[0x48, 0x8b, 0x04, 0x24]);
        self.op(pushed, &[0x48, 0x8d, 0x04, 0x08]);
        self.op(pushed, &[0x48, 0x89, 0x04, 0x24]);
        let after = Recipe::at(insn.next_ip()).saved(both);
        let after = self.reload(after, RCX)?;
        self.reload(after, RAX)?;
        Ok(())
    }

    /// POPFQ, if the word has only flags that may be loaded here, and no interrupt waits for its IF.
    ///
    /// The flags are the guest's until POPFQ loads others, so that they may be changed before.
    pub(super) fn popf(&mut self, insn: &Instruction) -> Result<(), Unsuitable> {
        if insn.code() != Code::Popfq {
            return Err(Unsuitable::Form);
        }
        let before = Recipe::at(insn.ip());
        let with_rcx = before.saved(Saved::RCX);
        // test dword [rsp], others
        self.op(before, &[0xf7, 0x04, 0x24]);
        self.raw(&(!PLAIN_FLAGS as u32).to_le_bytes());
        let special = self.short(before, 0x75);
        self.spill(before, RCX)?;
        self.op(before, &[0x48, 0x8b, 0x0c, 0x24]);
        self.store(with_rcx, FLAGS, RCX)?;
        self.op(with_rcx, &[0x81, 0xe1]);
        self.raw(&IF.to_le_bytes());
        // test [pending], rcx
        self.on_state(with_rcx, &[0x48, 0x85, 0x0d], PENDING, &[])?;
        let delivers = self.short(with_rcx, 0x75);
        self.store(with_rcx, INTERRUPTS, RCX)?;
        let after = Recipe::at(insn.next_ip()).rsp(8).then(Then::LoadFlags).saved(Saved::RCX);
        self.store_value(after, IO_PRIVILEGE, NO_IO_PRIVILEGE)?;
        let after = self.reload(after, RCX)?;
        self.op(after, &[0x9d]);
        let done = self.short(Recipe::at(insn.next_ip()), 0xeb);
        self.land(delivers)?;
        self.reload(with_rcx, RCX)?;
        self.land(special)?;
        self.callout_from(before);
        self.land(done)
    }
}
