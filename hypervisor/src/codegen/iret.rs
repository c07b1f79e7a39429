//! IRETQ within ring 0, without IRETQ: five words from the stack, checked and put where they belong.
//!
//! The target may only be one that the general case would accept without reading a descriptor: CS and SS as they are.
//! Everything else is for the host. No interrupt can come between the reading of the frame and the commit point: before
//! it an exit finds the guest's state as it was.

use iced_x86::{Code, Instruction};

use super::emitter::{Emitter, RAX, RCX, RDX, Unsuitable};
use super::flags::PLAIN_FLAGS;
use super::recipe::{Recipe, Saved, Then};
use super::state_page::{FLAGS, INTERRUPTS, IO_PRIVILEGE, NEW_RSP, PENDING, SELECTORS, TARGET};
use crate::x86::rflags;

/// CS and SS on the state page.
const CS: u64 = SELECTORS + 8;
const SS: u64 = SELECTORS + 16;
/// `mov register, [rsp + 8 n]`
const fn peek(register: u8, word: u8) -> [u8; 5] {
    [0x48, 0x8b, 0x44 | register << 3, 0x24, 8 * word]
}

impl Emitter<'_> {
    /// Everything of an IRETQ within ring 0 up to the jump: RCX is the target then, and so is [`TARGET`]. RAX, RCX and
    /// RDX are in their slots; everything else is the guest's. Returns the recipe there.
    pub fn return_from_interrupt(&mut self, insn: &Instruction) -> Result<Recipe, Unsuitable> {
        if insn.code() != Code::Iretq {
            return Err(Unsuitable::Form);
        }
        let before = Recipe::at(insn.ip());
        let all = Saved::RAX.and(Saved::RCX).and(Saved::RDX);
        for register in [RAX, RCX, RDX] {
            self.spill(before, register)?;
        }
        let state = before.saved(all);
        let mut refusals = Vec::with_capacity(5);
        // test dword [rsp + 16], others
        self.op(state, &[0xf7, 0x44, 0x24, 0x10]);
        self.raw(&(!PLAIN_FLAGS as u32).to_le_bytes());
        refusals.push(self.short(state, 0x75));
        for (word, selector) in [(1, CS), (4, SS)] {
            self.op(state, &peek(RAX, word));
            self.on_state(state, &[0x48, 0x3b, 0x05], selector, &[])?;
            refusals.push(self.short(state, 0x75));
        }
        self.op(state, &peek(RDX, 2));
        self.store(state, FLAGS, RDX)?;
        // and edx, IF; test [pending], rdx
        self.op(state, &[0x81, 0xe2]);
        self.raw(&(rflags::IF as u32).to_le_bytes());
        self.on_state(state, &[0x48, 0x85, 0x15], PENDING, &[])?;
        refusals.push(self.short(state, 0x75));
        self.op(state, &peek(RAX, 3));
        self.store(state, NEW_RSP, RAX)?;
        self.op(state, &peek(RCX, 0));
        self.store(state, TARGET, RCX)?;
        // mov rax, rcx; shl rax, 16; sar rax, 16; cmp rax, rcx
        self.op(state, &[0x48, 0x89, 0xc8]);
        self.op(state, &[0x48, 0xc1, 0xe0, 0x10]);
        self.op(state, &[0x48, 0xc1, 0xf8, 0x10]);
        self.op(state, &[0x48, 0x39, 0xc8]);
        let canonical = self.short(state, 0x74);
        for refusal in refusals {
            self.land(refusal)?;
        }
        let mut restored = state;
        for register in [RAX, RCX, RDX] {
            restored = self.reload(restored, register)?;
        }
        self.callout_from(before);
        self.land(canonical)?;
        self.store(state, INTERRUPTS, RDX)?;
        let after = state.then(Then::Return);
        self.store_value(after, IO_PRIVILEGE, -(rflags::IF as i32))?;
        // lea rsp, [flags]; popfq; mov rsp, [new_rsp]
        self.on_state(after, &[0x48, 0x8d, 0x25], FLAGS, &[])?;
        self.op(after, &[0x9d]);
        self.load(after, 4, NEW_RSP)?;
        Ok(state.then(Then::Target))
    }
}
