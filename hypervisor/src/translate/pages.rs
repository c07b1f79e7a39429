//! What blocks came from: frames of the guest, and linear pages that led there.

use std::collections::HashMap;

use paravane_abi::pte;

use super::cache::Cache;
use crate::machine::memory::{MachineMemory, Maddr, PAGE_SHIFT};
use crate::x86::walk::{PseudoPhysicalTables, walk};

const NONE: u32 = u32::MAX;

/// A block of a page, in a list.
#[derive(Clone, Copy, Debug)]
struct Member {
    block: u32,
    next: u32,
}

/// Code by frame and by linear page.
#[derive(Debug)]
pub(super) struct Pages {
    /// For each frame with code: its blocks.
    frames: HashMap<u64, u32>,
    /// For each linear page with code: the frame that it led to, and its blocks.
    linear: HashMap<u64, (u64, u32)>,
    members: Vec<Member>,
    /// For [`Pages::check`], which must not allocate; otherwise empty.
    stale: Vec<u64>,
}

impl Pages {
    /// Room for so many blocks.
    pub fn new(blocks: usize) -> Self {
        let linear = HashMap::with_capacity(blocks / 8);
        Self {
            frames: HashMap::with_capacity(blocks / 8),
            stale: Vec::with_capacity(linear.capacity()),
            linear,
            members: Vec::with_capacity(blocks * 2),
        }
    }

    /// Whether there is room for another block.
    pub fn has_room(&self) -> bool {
        self.members.len() + 4 <= self.members.capacity()
            && self.frames.len() + 2 <= self.frames.capacity()
            && self.linear.len() + 2 <= self.linear.capacity()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.linear.clear();
        self.members.clear();
    }

    /// All frames with code.
    pub fn frames(&self) -> impl Iterator<Item = u64> + '_ {
        self.frames.keys().copied()
    }

    /// Notes that a block has code from `va` on, in the frame `pfn`.
    pub fn add(&mut self, va: u64, pfn: u64, block: u32) {
        let frame = self.frames.entry(pfn).or_insert(NONE);
        let at = u32::try_from(self.members.len()).unwrap_or(NONE);
        let next = std::mem::replace(frame, at);
        self.members.push(Member { block, next });
        let (_, list) = self.linear.entry(va >> PAGE_SHIFT).or_insert((pfn, NONE));
        let next = std::mem::replace(list, at + 1);
        self.members.push(Member { block, next });
    }

    fn kill_list(&mut self, mut at: u32, memory: &MachineMemory, cache: &mut Cache) {
        while let Some(member) = self.members.get(at as usize) {
            cache.kill(memory, member.block);
            at = member.next;
        }
    }

    /// The frame was written to: its blocks go.
    pub fn written(&mut self, pfn: u64, memory: &MachineMemory, cache: &mut Cache) -> bool {
        let Some(list) = self.frames.remove(&pfn) else { return false };
        self.kill_list(list, memory, cache);
        true
    }

    /// Looks anew where linear pages lead: all of them, or that of `only`. Blocks of those that lead elsewhere go.
    pub fn check(
        &mut self,
        only: Option<u64>,
        memory: &MachineMemory,
        cache: &mut Cache,
        mut frame_of: impl FnMut(u64) -> Option<u64>,
    ) {
        let only = only.map(|va| va >> PAGE_SHIFT);
        match only {
            Some(page) => {
                if let Some((pfn, _)) = self.linear.get(&page)
                    && frame_of(page << PAGE_SHIFT) != Some(*pfn)
                {
                    self.stale.push(page);
                }
            }
            None => {
                let moved =
                    self.linear.iter().filter(|(page, (pfn, _))| frame_of(*page << PAGE_SHIFT) != Some(*pfn));
                self.stale.extend(moved.map(|(page, _)| *page));
            }
        }
        while let Some(page) = self.stale.pop() {
            if let Some((_, list)) = self.linear.remove(&page) {
                self.kill_list(list, memory, cache);
            }
        }
    }
}

/// Where pages of code lead, by the tables of one address space: the last L1 table is kept, because code lies together.
pub(super) struct Reader<'a> {
    memory: &'a MachineMemory,
    cr3: u64,
    no_execute: bool,
    /// What the table spans, where it is, and whether anything above forbids execution.
    last: Option<(u64, Maddr, bool)>,
}

impl<'a> Reader<'a> {
    /// For the tables that `cr3` names; `no_execute` is EFER.NXE.
    pub fn new(memory: &'a MachineMemory, cr3: u64, no_execute: bool) -> Self {
        Self { memory, cr3, no_execute, last: None }
    }

    /// The frame that the kernel executes at `va`; `None` where it does not, or where only a walk can tell.
    pub fn frame(&mut self, va: u64) -> Option<u64> {
        let span = va >> (PAGE_SHIFT + 9);
        let (_, table, forbidden) = match self.last {
            Some(last) if last.0 == span => last,
            _ => {
                let found = walk(self.memory, &PseudoPhysicalTables, self.cr3 & pte::ADDR_MASK, va).ok()?;
                let entry = found.step(1)?.entry;
                let above =
                    (2..=4).filter_map(|level| found.step(level)).fold(0, |bits, step| bits | step.value);
                *self.last.insert((span, entry.mfn().maddr(), above & pte::NX != 0))
            }
        };
        let entry = self.memory.load_u64(Maddr(table.0 | (va >> PAGE_SHIFT & 511) << 3)).ok()?;
        let forbidden = self.no_execute && (forbidden || entry & pte::NX != 0);
        let number = pte::mfn(entry);
        (entry & pte::PRESENT != 0 && !forbidden && self.memory.pfn_to_mfn(number).is_some())
            .then_some(number)
    }
}
