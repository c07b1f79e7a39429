//! What the guest's state is at an instruction of our code.
//!
//! A [`Recipe`] belongs to each instruction boundary of emitted code. Before a template's commit point it goes back:
//! registers from their slots, RIP at the guest's instruction. After it, it goes on: what is left to be done is done
//! here, and RIP is that of the next instruction.

use super::state_page::{self, StatePage, canonical};
use crate::exec::operand::register_mut;
use crate::exec::virtual_cpu::{VirtualCpu, hardware_flags};
use crate::machine::memory::MachineMemory;
use crate::x86::registers::Regs;

/// What the guest's state is at one instruction of our code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// The guest's RIP: that of the instruction in whose place the code runs, or after it.
    pub rip: u64,
    /// What else there is to do.
    pub then: Then,
    /// What to add to RSP.
    pub rsp: i8,
    /// Registers whose values are in their slots.
    pub saved: Saved,
}

/// What is left to be done for the guest's state to be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing.
    Nothing,
    /// Nothing; the code at this place is a trapping byte that asks for the instruction at RIP to be executed.
    Callout,
    /// Nothing; the code at this place is a trapping byte: there is no code yet for what is at RIP.
    Miss,
    /// Nothing; the code at this place is a trapping byte: there cannot be code of ours for what is at RIP, which has
    /// to run where it is.
    Native,
    /// RIP is the target of the indirect transfer.
    Target,
    /// RIP is the target of the indirect transfer, for which no code was found.
    TargetMiss,
    /// POPF: RFLAGS as they were read, and an IOPL of 0.
    LoadFlags,
    /// IRETQ: the same, with RSP as it was read, and RIP is the target.
    Return,
    /// STI: no interrupt before the instruction at RIP has run.
    Shadow,
    /// SWAPGS: GS.base is in RAX.
    LoadGs,
    /// A call to the host, whose return address on the state page's stack says for which instruction.
    Called,
}

/// A set of the registers that templates use, in the order of their numbers: RAX, RCX, RDX, RSP, R11.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Saved(u8);

impl Saved {
    pub const NONE: Self = Self(0);
    pub const RAX: Self = Self(1);
    pub const RCX: Self = Self(2);
    pub const RDX: Self = Self(4);
    pub const RSP: Self = Self(8);
    /// The members' numbers in instructions, by bit.
    const NUMBERS: [u8; 5] = [0, 1, 2, 4, 11];

    /// Both sets.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set without the members of `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The set of the register with this number; empty for one that templates do not use.
    pub fn of(register: u8) -> Self {
        let bit = Self::NUMBERS.iter().position(|number| *number == register);
        Self(bit.map_or(0, |bit| 1 << bit))
    }

    /// The members' numbers.
    pub fn registers(self) -> impl Iterator<Item = u8> {
        Self::NUMBERS.into_iter().enumerate().filter(move |(bit, _)| self.0 >> bit & 1 != 0).map(|(_, n)| n)
    }
}

impl Recipe {
    /// The instruction at `rip` has not begun, and all registers are the guest's.
    pub const fn at(rip: u64) -> Self {
        Self { rip, then: Then::Nothing, rsp: 0, saved: Saved::NONE }
    }

    /// The same with registers in their slots.
    pub const fn saved(self, saved: Saved) -> Self {
        Self { saved, ..self }
    }

    /// The same with something to add to RSP.
    pub const fn rsp(self, rsp: i8) -> Self {
        Self { rsp, ..self }
    }

    /// The same with something left to do.
    pub const fn then(self, then: Then) -> Self {
        Self { then, ..self }
    }

    /// Whether code may be entered here with the guest's state as it is at `rip`.
    pub fn is_entry(&self, rip: u64) -> bool {
        *self == Self::at(rip)
    }

    /// Makes the guest's state whole: `regs` as the engine left them become the guest's.
    pub fn apply(&self, memory: &MachineMemory, page: StatePage, cpu: &mut VirtualCpu, regs: &mut Regs) {
        if self.then == Then::LoadGs {
            regs.gs_base = canonical(regs.rax);
        }
        for register in self.saved.registers() {
            *register_mut(regs, register) = page.word(memory, state_page::slot(register));
        }
        regs.rsp = regs.rsp.wrapping_add_signed(self.rsp.into());
        regs.rip = self.rip;
        match self.then {
            Then::Nothing | Then::Callout | Then::Miss | Then::Native | Then::LoadGs | Then::Called => {}
            Then::Target | Then::TargetMiss => regs.rip = page.word(memory, state_page::TARGET),
            Then::LoadFlags => {
                cpu.io_privilege = 0;
                regs.rflags = hardware_flags(page.word(memory, state_page::FLAGS));
            }
            Then::Return => {
                cpu.io_privilege = 0;
                regs.rflags = hardware_flags(page.word(memory, state_page::FLAGS));
                regs.rsp = page.word(memory, state_page::NEW_RSP);
                regs.rip = page.word(memory, state_page::TARGET);
            }
            Then::Shadow => cpu.shadowed_rip = Some(self.rip),
        }
    }
}

/// The recipes of emitted code, in the order of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    /// Where the instruction is: bytes from the beginning of the code.
    pub at: u32,
    /// The guest's state there.
    pub recipe: Recipe,
}

/// The recipe of the instruction at `at`, if one begins there.
pub(crate) fn find(points: &[Point], at: u32) -> Option<&Recipe> {
    let index = points.binary_search_by_key(&at, |point| point.at).ok()?;
    points.get(index).map(|point| &point.recipe)
}

/// Makes the guest's state whole after an exit at `at` in emitted code; returns the recipe that applied. `None` where
/// no instruction of ours begins: the guest jumped there by itself, and the state is its own.
///
/// `origin` is the linear address that [`Point::at`] counts from; `points` has those among which that of a place is.
pub(crate) fn restore<'a>(
    points: impl Fn(u32) -> &'a [Point],
    origin: u64,
    memory: &MachineMemory,
    page: StatePage,
    cpu: &mut VirtualCpu,
    regs: &mut Regs,
) -> Option<Recipe> {
    let recipe_at = |address: u64| {
        let at = u32::try_from(address.wrapping_sub(origin)).ok()?;
        find(points(at), at)
    };
    let mut recipe = *recipe_at(regs.rip)?;
    if recipe.then == Then::Called {
        // Who called is a claim, but every callout that it can name is one that the kernel could have come to.
        let caller = page.word(memory, state_page::STACK_TOP - 8);
        let of_caller = recipe_at(caller).filter(|found| found.then == Then::Callout)?;
        recipe = of_caller.saved(of_caller.saved.and(recipe.saved));
    }
    recipe.apply(memory, page, cpu, regs);
    Some(recipe)
}
