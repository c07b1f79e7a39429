//! Stores to page tables that are noted in a log instead of trapping.
//!
//! *Innocent until proven guilty* (Adams and Agesen, 2006): a store is translated as a copy, until it has trapped so
//! often that it is taken for one that writes page tables. Its block is then translated anew. The store now looks its
//! linear page up in a small cache of *aliases*: pages of ours that map table frames writable. It notes in a log which
//! entry it is about to change, and changes it there. Whatever it does not find, or has no room in the log for, it does
//! as before, and traps.
//!
//! The monitor follows the log at every exit, before anything else. That is soon enough: until then nobody but the
//! processor reads the shadow, which may go on with what it has cached until the kernel flushes, and flushes are exits;
//! and an entry that is not present faults, which is an exit.

use std::collections::HashMap;

use iced_x86::{Code, ConstantOffsets, Instruction, Register};

use super::block::Block;
use crate::codegen::emitter::{RAX, RCX, RDX, Unsuitable};
use crate::codegen::recipe::{Recipe, Saved};
use crate::codegen::state_page::StatePage;
use crate::machine::memory::{MachineMemory, Maddr, PAGE_SIZE};

/// How many aliases there are.
pub(super) const ALIASES: u64 = 64;
/// Offsets on the state page: the negatives of the linear pages that have aliases, the aliases' addresses, how many
/// entries are left in the log. The log has pages of its own.
const KEYS: u64 = 0x300;
const ADDRESSES: u64 = KEYS + ALIASES * 8;
const LEFT: u64 = 0x2f8;
/// Frames of the log.
pub(crate) const LOG_FRAMES: u64 = 2;
/// Entries of the log, whose number 0 is not used.
const LOG_SIZE: u64 = LOG_FRAMES * PAGE_SIZE / 8;
/// The key of no page.
const FREE: u64 = 1;
/// Masks that adapted stores use: the bits within an entry, those that select an alias, those of a page.
pub(super) const MASKS: [u64; 3] = [7, (ALIASES - 1) << 12, !0xfff];
/// How often a store traps before it is taken for one that writes page tables.
const PROVEN: u8 = 2;
/// How many stores are counted, and how many can be adapted.
const COUNTED: usize = 256;

/// What is known of a store.
#[derive(Clone, Copy, Debug)]
struct Known {
    traps: u8,
    /// Since it is adapted: the number that the next block had then.
    since: u32,
}

/// Which stores are adapted, and where the aliases lead.
#[derive(Debug)]
pub(super) struct Adaptation {
    stores: HashMap<u64, Known>,
    log: Maddr,
    /// For each alias: the linear page and the frame.
    aliases: [Option<(u64, u64)>; ALIASES as usize],
    /// Whether the state page has what is here.
    published: bool,
}

impl Adaptation {
    /// With a log in frames at `log`.
    pub fn new(log: Maddr) -> Self {
        let stores = HashMap::with_capacity(COUNTED);
        Self { stores, log, aliases: [None; ALIASES as usize], published: false }
    }

    /// Whether the store at `rip` is to be logged.
    pub fn is_adapted(&self, rip: u64) -> bool {
        self.stores.get(&rip).is_some_and(|known| known.traps >= PROVEN)
    }

    /// Counts a trap of the store at `rip`; returns whether it is proven guilty by this one. The next block will have
    /// the number `next`.
    pub fn trapped(&mut self, rip: u64, next: u32) -> bool {
        if self.stores.len() >= COUNTED && !self.stores.contains_key(&rip) {
            return false;
        }
        let known = self.stores.entry(rip).or_insert(Known { traps: 0, since: 0 });
        known.traps = known.traps.saturating_add(1);
        let proven = known.traps == PROVEN;
        if proven {
            known.since = next;
        }
        proven
    }

    /// Whether the block with this number is older than the adaptation of the store at `rip`.
    pub fn is_outdated(&self, rip: u64, block: u32) -> bool {
        self.stores.get(&rip).is_some_and(|known| block < known.since)
    }

    /// All blocks are made anew, and their numbers begin anew.
    pub fn blocks_gone(&mut self) {
        self.stores.values_mut().for_each(|known| known.since = 0);
    }

    /// Whether the alias of a linear address is free.
    pub fn is_free(&self, va: u64) -> bool {
        self.aliases.get(Self::slot(va) as usize).is_some_and(Option::is_none)
    }

    /// Which alias belongs to a linear address.
    pub fn slot(va: u64) -> u64 {
        va >> 12 & (ALIASES - 1)
    }

    /// Has an alias lead to the frame of a linear page.
    pub fn set(&mut self, va: u64, pfn: u64) {
        if let Some(alias) = self.aliases.get_mut(Self::slot(va) as usize) {
            *alias = Some((va & !(PAGE_SIZE - 1), pfn));
            self.published = false;
        }
    }

    /// Lets go of the aliases for which `goes` says so of linear page and frame.
    pub fn release(&mut self, goes: impl Fn(u64, u64) -> bool) {
        for alias in &mut self.aliases {
            if alias.is_some_and(|(va, pfn)| goes(va, pfn)) {
                *alias = None;
                self.published = false;
            }
        }
    }

    /// Empties the log on the state page, and puts the aliases there, of which the first is at `base`.
    pub fn publish(&mut self, memory: &MachineMemory, page: StatePage, base: u64) {
        page.set_word(memory, LEFT, LOG_SIZE - 1);
        if std::mem::replace(&mut self.published, true) {
            return;
        }
        for (n, alias) in (0..).zip(&self.aliases) {
            page.set_word(memory, KEYS + n * 8, alias.map_or(FREE, |(va, _)| va.wrapping_neg()));
            page.set_word(memory, ADDRESSES + n * 8, base + n * PAGE_SIZE);
        }
    }

    /// Says that the state page has to be written anew.
    pub fn forget_page(&mut self) {
        self.published = false;
    }

    /// Hands out the entries of the log: frame and slot. The first alias is at `base`.
    pub fn drain(
        &self,
        memory: &MachineMemory,
        page: StatePage,
        base: u64,
        mut each: impl FnMut(u64, u64),
    ) -> u64 {
        let left = page.word(memory, LEFT).min(LOG_SIZE - 1);
        for n in left + 1..LOG_SIZE {
            // A claim: of any alias that there is.
            let word = memory.load_u64(Maddr(self.log.0 + n * 8)).unwrap_or(0);
            let offset = word.wrapping_sub(base);
            let alias = self.aliases.get(usize::try_from(offset / PAGE_SIZE).unwrap_or(usize::MAX));
            if let Some((_, pfn)) = alias.copied().flatten() {
                each(pfn, offset % PAGE_SIZE / 8);
            }
        }
        LOG_SIZE - 1 - left
    }
}

const JRCXZ: u8 = 0xe3;
const ALL: Saved = Saved::RAX.and(Saved::RCX).and(Saved::RDX);

impl Block<'_> {
    /// A store of 8 bytes that is logged where it is one to a page table.
    pub(super) fn logged_store(
        &mut self,
        insn: &Instruction,
        offsets: ConstantOffsets,
        code: &[u8],
    ) -> Result<(), Unsuitable> {
        let of_register = match insn.code() {
            Code::Mov_rm64_r64 => true,
            Code::Mov_rm64_imm32 => false,
            _ => return Err(Unsuitable::Form),
        };
        let flat = !matches!(insn.segment_prefix(), Register::FS | Register::GS);
        if !self.emitter.env.bmi2 || !flat || insn.op0_register() != Register::None {
            return Err(Unsuitable::Form);
        }
        let before = Recipe::at(insn.ip());
        let state = before.saved(ALL);
        let masks = self.shared.store_masks;
        let at_state = |word: u64| -> Result<[u8; 4], Unsuitable> { super::lookup::absolute(word) };
        let page = self.emitter.env.state;
        let (keys, addresses, log) =
            (at_state(page + KEYS)?, at_state(page + ADDRESSES)?, at_state(page + PAGE_SIZE)?);
        let e = &mut self.emitter;
        for register in [RAX, RCX, RDX] {
            e.spill(before, register)?;
        }
        e.with_operand(before, insn, (&[], true, &[0x8d]), RAX, 0)?;
        // pext rcx, rax, [mask]: an entry is aligned.
        const PEXT_RCX_RAX: [u8; 5] = [0xc4, 0xe2, 0xfa, 0xf5, 0x0d];
        const PEXT_RCX_RDX: [u8; 5] = [0xc4, 0xe2, 0xea, 0xf5, 0x0d];
        e.relative(state, &PEXT_RCX_RAX, masks, &[])?;
        let aligned = e.short(state, JRCXZ);
        let odd = e.near(state, &[0xe9]);
        e.land(aligned)?;
        e.relative(state, &PEXT_RCX_RAX, masks + 8, &[])?;
        // mov rdx, [keys + rcx * 8]; lea rdx, [rdx + rax]; mov rax, [addresses + rcx * 8]
        e.op(state, &[0x48, 0x8b, 0x14, 0xcd]);
        e.raw(&keys);
        e.op(state, &[0x48, 0x8d, 0x14, 0x02]);
        e.op(state, &[0x48, 0x8b, 0x04, 0xcd]);
        e.raw(&addresses);
        e.relative(state, &PEXT_RCX_RDX, masks + 16, &[])?;
        let found = e.short(state, JRCXZ);
        let unknown = e.near(state, &[0xe9]);
        e.land(found)?;
        // lea rax, [rax + rdx]; mov rcx, [left]
        e.op(state, &[0x48, 0x8d, 0x04, 0x10]);
        e.load(state, RCX, LEFT)?;
        let full = e.short(state, JRCXZ);
        // mov [log + rcx * 8], rax; lea rcx, [rcx - 1]; mov [left], rcx
        e.op(state, &[0x48, 0x89, 0x04, 0xcd]);
        e.raw(&log);
        e.op(state, &[0x48, 0x8d, 0x49, 0xff]);
        e.store(state, LEFT, RCX)?;
        let value = if of_register { insn.op1_register().number() as u8 } else { u8::MAX };
        let mut address = RAX;
        if value == RAX {
            // mov rcx, rax
            e.op(state, &[0x48, 0x89, 0xc1]);
            address = RCX;
        }
        let mut now = state;
        for register in [RAX, RCX, RDX].into_iter().filter(|register| *register != address) {
            now = e.reload(now, register)?;
        }
        if of_register {
            // mov [address], value
            e.op(now, &[0x48 | (value >> 3) << 2, 0x89, (value & 7) << 3 | address]);
        } else {
            e.op(now, &[0x48, 0xc7, address]);
            e.raw(&insn.immediate32to64().cast_unsigned().to_le_bytes()[..4]);
        }
        let after = Recipe::at(insn.next_ip());
        e.reload(after.saved(Saved::of(address)), address)?;
        let done = e.short(after, 0xeb);
        for miss in [odd, unknown, full] {
            e.land(miss)?;
        }
        let mut restored = state;
        for register in [RAX, RCX, RDX] {
            restored = e.reload(restored, register)?;
        }
        e.copy_at(restored, insn, offsets, code)?;
        e.land(done)
    }
}
