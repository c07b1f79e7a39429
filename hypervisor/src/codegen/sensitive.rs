//! What runs in the place of a sensitive instruction: a load or store of the state page where that is all there is to
//! it, else a callout.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::emitter::{Dead, Emitter, RAX, RCX, RSP, TRAP, Unsuitable};
use super::operand::free_register;
use super::recipe::{Recipe, Saved, Then};
use super::state_page::{
    CR0, CR2, CR3, CR4, CR8, GDTR, IDTR, KERNEL_GS_BASE, LDT, NOT_PRIORITY, SELECTORS, STACK_TOP, TASK, slot,
};

/// What was emitted for a sensitive instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emitted {
    /// Code that does it in the guest, in the common case.
    Inside,
    /// A callout.
    Callout,
}

impl Emitter<'_> {
    /// Emits what runs in the place of a sensitive instruction that does not transfer control.
    pub fn sensitive(&mut self, insn: &Instruction, dead: Dead) -> Emitted {
        let before = self.len();
        match self.inside(insn, dead) {
            Ok(()) => Emitted::Inside,
            Err(_) => {
                self.cut(before);
                self.callout(insn);
                Emitted::Callout
            }
        }
    }

    fn inside(&mut self, insn: &Instruction, dead: Dead) -> Result<(), Unsuitable> {
        use Mnemonic::*;
        match insn.mnemonic() {
            Cli => self.cli(insn),
            Sti => self.sti(insn, dead),
            Swapgs => self.swapgs(insn),
            Pushfq => self.pushf(insn),
            Popfq => self.popf(insn),
            Smsw => self.store_word(insn, CR0, true),
            Str => self.store_word(insn, TASK, false),
            Sldt => self.store_word(insn, LDT, false),
            Sgdt => self.store_table(insn, GDTR),
            Sidt => self.store_table(insn, IDTR),
            Mov if insn.op1_register().is_cr() => self.read_control(insn),
            Mov if insn.op0_register() == Register::CR8 => self.write_priority(insn, dead),
            Mov if insn.op1_register().is_segment_register() => {
                self.store_word(insn, selector(insn.op1_register())?, false)
            }
            Push => self.push_selector(insn),
            _ => Err(Unsuitable::Form),
        }
    }

    /// Emits a callout: the host executes the instruction.
    pub fn callout(&mut self, insn: &Instruction) {
        self.callout_from(Recipe::at(insn.ip()));
    }

    /// A callout from a place in a template where the guest's state is `recipe`.
    pub(super) fn callout_from(&mut self, recipe: Recipe) {
        let before = self.len();
        if let Some(gate) = self.env.gate
            && self.call_gate(recipe, gate).is_ok()
        {
            return;
        }
        self.cut(before);
        self.op(recipe.then(Then::Callout), &[TRAP]);
    }

    /// Calls the host on a stack of the state page. The instruction after the call is never reached: it is where the
    /// recipe is found.
    fn call_gate(&mut self, recipe: Recipe, gate: u64) -> Result<(), Unsuitable> {
        // What is called uses slots of its own.
        let mut recipe = recipe;
        for register in recipe.saved.registers() {
            recipe = self.reload(recipe, register)?;
        }
        self.spill(recipe, RSP)?;
        let recipe = recipe.saved(recipe.saved.and(Saved::RSP));
        // lea rsp, [stack]; call gate
        self.on_state(recipe.saved(recipe.saved.without(Saved::RSP)), &[0x48, 0x8d, 0x25], STACK_TOP, &[])?;
        self.relative(recipe, &[0xe8], gate, &[])?;
        self.op(recipe.then(Then::Callout), &[TRAP]);
        Ok(())
    }

    /// MOV from a control register. In 64-bit mode its operand is a 64-bit register.
    fn read_control(&mut self, insn: &Instruction) -> Result<(), Unsuitable> {
        let word = match insn.op1_register() {
            Register::CR0 => CR0,
            Register::CR2 => CR2,
            Register::CR3 => CR3,
            Register::CR4 => CR4,
            Register::CR8 => CR8,
            _ => return Err(Unsuitable::Form),
        };
        self.load(Recipe::at(insn.ip()), insn.op0_register().number() as u8, word)
    }

    /// MOV to CR8, which takes the values up to 15.
    fn write_priority(&mut self, insn: &Instruction, dead: Dead) -> Result<(), Unsuitable> {
        let (before, register) = (Recipe::at(insn.ip()), insn.op1_register().number() as u8);
        let rex = 0x48 | register >> 3;
        if !dead.flags {
            return self.write_priority_without_flags(insn, register);
        }
        // test register, ~15
        self.op(before, &[rex, 0xf7, 0xc0 | register & 7]);
        self.raw(&(!15i32).to_le_bytes());
        let fine = self.short(before, 0x74);
        self.callout_from(before);
        self.land(fine)?;
        self.store(before, CR8, register)
    }

    /// The same without changing a flag.
    fn write_priority_without_flags(&mut self, insn: &Instruction, register: u8) -> Result<(), Unsuitable> {
        if !self.env.bmi2 {
            return Err(Unsuitable::Form);
        }
        let before = Recipe::at(insn.ip());
        let with_rcx = before.saved(Saved::RCX);
        self.spill(before, RCX)?;
        // pext rcx, register, [not_priority]
        let pext = [0xc4, 0xe2, 0x82 | (!register & 15) << 3, 0xf5, 0x0d];
        self.on_state(before, &pext, NOT_PRIORITY, &[])?;
        let fine = self.short(with_rcx, 0xe3);
        self.callout_from(with_rcx);
        self.land(fine)?;
        self.reload(with_rcx, RCX)?;
        self.store(before, CR8, register)
    }

    /// SWAPGS. From the store of the old base on, it is done but for the load of the new one.
    fn swapgs(&mut self, insn: &Instruction) -> Result<(), Unsuitable> {
        if !self.env.fsgsbase {
            return Err(Unsuitable::Form);
        }
        let before = Recipe::at(insn.ip());
        let both = Saved::RAX.and(Saved::RCX);
        self.spill(before, RAX)?;
        self.spill(before, RCX)?;
        // rdgsbase rcx
        self.op(before, &[0xf3, 0x48, 0x0f, 0xae, 0xc9]);
        self.load(before.saved(Saved::RCX), RAX, KERNEL_GS_BASE)?;
        self.store(before.saved(both), KERNEL_GS_BASE, RCX)?;
        let after = Recipe::at(insn.next_ip()).saved(both);
        // wrgsbase rax
        self.op(after.then(Then::LoadGs), &[0xf3, 0x48, 0x0f, 0xae, 0xd8]);
        let after = self.reload(after, RCX)?;
        self.reload(after, RAX)?;
        Ok(())
    }

    /// Stores a word of the state page into a register or 16 bits of memory; `whole` says whether a register gets all
    /// of the word, or its low 16 bits.
    fn store_word(&mut self, insn: &Instruction, word: u64, whole: bool) -> Result<(), Unsuitable> {
        let before = Recipe::at(insn.ip());
        if insn.op0_kind() == OpKind::Register {
            let register = insn.op0_register();
            let number = register.number() as u8;
            let modrm = super::emitter::rip_relative(number);
            let rex = 0x40 | (number >> 3) << 2;
            return match (register.size(), whole) {
                (2, _) => self.on_state(before, &[0x66, rex, 0x8b, modrm], word, &[]),
                (4, true) => self.on_state(before, &[rex, 0x8b, modrm], word, &[]),
                (8, true) => self.on_state(before, &[rex | 8, 0x8b, modrm], word, &[]),
                // movzx r32, word: clears the upper half, as the instruction does.
                (4 | 8, false) => self.on_state(before, &[rex, 0x0f, 0xb7, modrm], word, &[]),
                _ => Err(Unsuitable::Form),
            };
        }
        let scratch = free_register(insn);
        let with = before.saved(Saved::of(scratch));
        self.spill(before, scratch)?;
        self.load(before, scratch, word)?;
        self.with_operand(with, insn, (&[0x66], false, &[0x89]), scratch, 0)?;
        self.load(Recipe::at(insn.next_ip()).saved(Saved::of(scratch)), scratch, slot(scratch))
    }

    /// SGDT, SIDT: 10 bytes.
    fn store_table(&mut self, insn: &Instruction, word: u64) -> Result<(), Unsuitable> {
        let before = Recipe::at(insn.ip());
        let scratch = free_register(insn);
        let with = before.saved(Saved::of(scratch));
        self.spill(before, scratch)?;
        self.load(before, scratch, word + 8)?;
        self.with_operand(with, insn, (&[0x66], false, &[0x89]), scratch, 8)?;
        self.load(with, scratch, word)?;
        self.with_operand(with, insn, (&[], true, &[0x89]), scratch, 0)?;
        self.load(Recipe::at(insn.next_ip()).saved(Saved::of(scratch)), scratch, slot(scratch))
    }

    /// PUSH FS, PUSH GS.
    fn push_selector(&mut self, insn: &Instruction) -> Result<(), Unsuitable> {
        if insn.stack_pointer_increment() != -8 {
            return Err(Unsuitable::Form);
        }
        let word = selector(insn.op0_register())?;
        self.on_state(Recipe::at(insn.ip()), &[0xff, 0x35], word, &[])
    }

    /// Emits the code that callouts call, once: it leaves for the host by `stub`, a machine's way to make a hypercall.
    pub fn gate(&mut self, stub: &[u8; 32]) -> Result<(), Unsuitable> {
        const R11: u8 = 11;
        let called = Recipe::at(0).then(Then::Called);
        let mut saved = called;
        for register in [RAX, RCX, R11] {
            self.spill(called, register)?;
            saved = saved.saved(saved.saved.and(Saved::of(register)));
        }
        // What follows changes these registers at the most, and RSP, which is in its slot already.
        let from = self.len();
        self.raw(stub);
        for offset in from..self.len() {
            self.point_at(offset, saved);
        }
        // Where the stub would go on.
        self.op(saved, &[TRAP]);
        Ok(())
    }
}

/// Where a segment register's selector is.
fn selector(register: Register) -> Result<u64, Unsuitable> {
    if !register.is_segment_register() {
        return Err(Unsuitable::Form);
    }
    Ok(SELECTORS + 8 * (register.number() as u64 % 6))
}
