//! The mirror: guest page tables as mappings of guest processes.
//!
//! A process's mappings are to this engine what a TLB is to a processor: a cache of what the guest's tables say, filled
//! by the faults that miss it and never wider than they are. Every change of an entry comes from [`TableLog`]; the
//! mappings that depended on it go, or change, before the guest runs again (with several virtual CPUs: before the one
//! that applies the log goes on; an entry is read anew then, under the lock under which faults read them, so that
//! whoever read an older value has mapped it by then). So INVLPG and loads of CR3 have nothing left to do here. Three
//! things bound it, whatever the guest's tables look like: the pool of chunks, the number of mappings of one process
//! (Linux allows 65,530), and the batch; past any of them everything of a process is unmapped and filled again.
//!
//! A page is mapped only if its entry has A set, and writable only if it has D: the first access and the
//! first store fault, and set them, as the processor would (SDM vol. 3, 4.8). What may not be done here:
//! trusting that tables are well-formed, or that they still say what they did.

mod batch;
mod chunks;
mod fill;

use std::ops::Range;

use paravane_abi::pte;

use self::batch::Rights;
use self::chunks::{Chunks, Id, NO_TABLE, PAGES, Page, Tables};
use super::area::{Area, GUEST_END};
use super::lowest;
use super::space::Space;
use crate::host::zeroed::NoMemory;
use crate::machine::memory::{MachineMemory, Mfn, PAGE_SHIFT, PAGE_SIZE};
use crate::mmu::log::{PteWrite, TableLog};
use crate::mmu::space::Pending;
use crate::x86::walk::{Access, MachineTables, Translation, walk_for};

pub(super) use self::batch::Batch;

/// How many mappings one process may have: a quarter of Linux's default limit.
const MAX_RUNS: u32 = 16_384;
const CHUNK_SHIFT: u32 = 21;

/// #PF error-code bits (SDM vol. 3, 4.7).
const PF_PRESENT: u32 = 1 << 0;
const PF_WRITE: u32 = 1 << 1;
const PF_USER: u32 = 1 << 2;
const PF_RESERVED: u32 = 1 << 3;
const PF_FETCH: u32 = 1 << 4;

/// What became of a page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// The page will be mapped at the next entry.
    Mapped,
    /// It was mapped already: a fault that repeats is a sign of a forged or broken process.
    Again,
    /// The guest's tables do not allow the access: the error code of its page fault.
    Fault(u32),
    /// They do, but the address is one that a process cannot have.
    Unmappable,
}

/// The mirror of one engine's address spaces.
#[derive(Debug)]
pub(super) struct Mirror {
    chunks: Chunks,
    /// The order in which writes are applied: by entry, then by time. Never more than [`TableLog::CAPACITY`].
    order: Vec<(u64, u32)>,
    /// Frames below are the hypervisor's: never writable, but for those that it shares.
    hypervisor_frames: u64,
    shared: Range<u64>,
    /// The first address that a process may map.
    lowest: u64,
    /// Whether the host was asked for it.
    lowest_is_known: bool,
}

impl Mirror {
    /// A mirror for processes that may map what is not below `lowest`.
    pub fn new(hypervisor_frames: u64, shared: Range<u64>, lowest: u64) -> Result<Self, NoMemory> {
        let order = Vec::with_capacity(TableLog::CAPACITY);
        let lowest_is_known = lowest < lowest::USUAL;
        let chunks = Chunks::new()?;
        Ok(Self { chunks, order, hypervisor_frames, shared, lowest, lowest_is_known })
    }

    /// Whether a process can have this address.
    fn can_have(&mut self, va: u64) -> bool {
        if va < self.lowest && !self.lowest_is_known {
            (self.lowest, self.lowest_is_known) = (lowest::unprivileged(), true);
        }
        (self.lowest..GUEST_END).contains(&va)
    }

    /// The first page of a chunk that a process can have: not the first in the lowest chunk only.
    fn first_page(&self, id: Id) -> usize {
        let below = self.lowest.saturating_sub(self.chunks.base(id) << CHUNK_SHIFT);
        (below.div_ceil(PAGE_SIZE) as usize).min(PAGES)
    }

    fn may_be_written(&self, frame: u64) -> bool {
        frame >= self.hypervisor_frames || self.shared.contains(&frame)
    }

    /// What an L1 entry maps, under tables that allow `rights`; `None` if its use must fault first.
    fn page_of(&self, memory: &MachineMemory, entry: u64, rights: (bool, bool)) -> Option<Page> {
        const NEEDED: u64 = pte::PRESENT | pte::USER | pte::ACCESSED;
        const WRITABLE: u64 = pte::RW | pte::DIRTY;
        let frame = pte::mfn(entry);
        if entry & NEEDED != NEEDED || !memory.is_frame(Mfn(frame)) {
            return None;
        }
        let write = rights.0 && entry & WRITABLE == WRITABLE && self.may_be_written(frame);
        Some(Page::new(frame, write, rights.1 && entry & pte::NX == 0))
    }

    /// Handles a page fault of the process `current`: asks the guest's tables.
    pub fn fault(
        &mut self,
        spaces: &mut [Space],
        current: usize,
        memory: &MachineMemory,
        va: u64,
        (write, fetch): (bool, bool),
    ) -> Filled {
        let code = PF_USER | (u32::from(write) * PF_WRITE) | (u32::from(fetch) * PF_FETCH);
        let Some(root) = spaces.get(current).and_then(|s| s.root) else { return Filled::Fault(code) };
        let access = Access { write, user: true, fetch };
        let t = match walk_for(memory, &MachineTables, root.maddr().0, va, access) {
            Ok(t) => t,
            Err(fault) => return Filled::Fault(fault.error_code(access).unwrap_or(code)),
        };
        let Some(maddr) = t.maddr else { return Filled::Fault(code | PF_PRESENT | PF_RESERVED) };
        if write && !self.may_be_written(maddr.mfn().0) {
            return Filled::Fault(code | PF_PRESENT);
        }
        if !self.can_have(va) {
            return Filled::Unmappable;
        }
        if !set_accessed(memory, &t, write) {
            // Changed since it was walked: the guest's next access finds out.
            return Filled::Again;
        }
        let Some(id) = self.chunk_for(spaces, current, va, &t) else { return Filled::Unmappable };
        if t.level == 1 {
            self.fill_small(spaces, id, memory, va, &t)
        } else {
            self.fill_large(spaces, id, memory, va, &t, write)
        }
    }

    /// The chunk of `va`, as the tables have it now.
    fn chunk_for(&mut self, spaces: &mut [Space], current: usize, va: u64, t: &Translation) -> Option<Id> {
        let number = u8::try_from(current).ok()?;
        let table = |level| t.step(level).map_or(NO_TABLE, |s| s.entry.mfn().0);
        let tables: Tables = [table(1), table(2), table(3)];
        let above = |level: u8| t.step(level).filter(|_| level > t.level.max(1)).map(|s| s.value);
        let upper = [2, 3, 4].into_iter().filter_map(above);
        let rights = upper.fold((true, true), |(w, x), v| (w && v & pte::RW != 0, x && v & pte::NX == 0));
        if spaces.get(current)?.runs >= MAX_RUNS {
            self.drop_space(spaces, current);
        }
        let base = va >> CHUNK_SHIFT;
        if let Some(id) = self.chunks.find(number, base) {
            if self.chunks.tables(id) == tables && self.chunks.rights(id) == rights {
                return Some(id);
            }
            self.drop_chunk(spaces, id);
        }
        if let Some(id) = self.chunks.insert(number, base, tables, rights) {
            return Some(id);
        }
        self.evict(spaces, current);
        self.chunks.insert(number, base, tables, rights)
    }

    /// Brings the mirror up to date with what was written to page tables.
    pub fn apply(
        &mut self,
        spaces: &mut [Space],
        current: usize,
        memory: &MachineMemory,
        pending: &Pending<'_>,
    ) {
        if pending.stale {
            for s in 0..spaces.len() {
                self.drop_space(spaces, s);
            }
            return;
        }
        for frame in pending.reused.iter() {
            self.forget_table(spaces, *frame);
        }
        // Each entry's last write counts, and entries do not depend on each other; in the order of addresses
        // neighbours meet, and become one call.
        let mut order = std::mem::take(&mut self.order);
        order.extend((0u32..).zip(pending.writes.iter()).map(|(time, w)| (w.entry.0, time)));
        if !order.is_sorted() {
            order.sort_unstable();
        }
        for write in order.iter().filter_map(|(_, time)| pending.writes.get(*time as usize)) {
            self.entry_changed(spaces, current, memory, write);
        }
        order.clear();
        self.order = order;
    }

    fn entry_changed(
        &mut self,
        spaces: &mut [Space],
        current: usize,
        memory: &MachineMemory,
        write: &PteWrite,
    ) {
        let frame = write.entry.mfn().0;
        let index = write.entry.offset() >> 3;
        // What is there now: a fault may have set bits since, and a later write of the same entry is in the log too.
        let now = memory.load_u64(write.entry).unwrap_or(write.new);
        // The table may serve at several levels at once: a linear page table refers to itself.
        let mut at = self.chunks.first_of_table(0, frame);
        while let Some(id) = at {
            at = self.chunks.next_of_table(id, 0, frame);
            self.leaf_changed(spaces, current, memory, id, index as usize, now);
        }
        const HARMLESS: u64 =
            pte::ACCESSED | pte::DIRTY | pte::GLOBAL | pte::AVAIL0 | pte::AVAIL1 | pte::AVAIL2;
        if write.old & pte::PRESENT == 0 || (write.old ^ write.new) & !HARMLESS == 0 {
            return;
        }
        for (level, shift) in [(1, 0), (2, 9)] {
            let mut at = self.chunks.first_of_table(level, frame);
            while let Some(id) = at {
                at = self.chunks.next_of_table(id, level, frame);
                if self.chunks.base(id) >> shift & 511 == index {
                    self.drop_chunk(spaces, id);
                }
            }
        }
        for s in 0..spaces.len() {
            if spaces.get(s).is_some_and(|space| space.root == Some(Mfn(frame))) {
                self.drop_where(spaces, s, |chunks, id| chunks.base(id) >> 18 == index);
            }
        }
    }

    /// An entry of a chunk's L1 table (or the large page that covers it) is now `entry`.
    fn leaf_changed(
        &mut self,
        spaces: &mut [Space],
        current: usize,
        memory: &MachineMemory,
        id: Id,
        index: usize,
        entry: u64,
    ) {
        let old = self.chunks.page(id, index);
        let new = self.page_of(memory, entry, self.chunks.rights(id)).unwrap_or_default();
        let space = usize::from(self.chunks.space(id));
        // What the guest marks as accessed in the address space it is in, it is about to use.
        if old == new || (!old.is_mapped() && space != current) || index < self.first_page(id) {
            return;
        }
        if spaces.get(space).is_none_or(|s| s.runs >= MAX_RUNS) {
            return self.drop_space(spaces, space);
        }
        if !new.is_mapped() {
            self.note_one(spaces, id, index, new);
            let va = self.address(id, index);
            let last = spaces.get(space).and_then(|s| s.batch.unmapped_to());
            let gap = last.map_or(0, |end| self.gap(id, end, index));
            emit(spaces, space, |batch, area| batch.unmap(area, va, 1, gap));
        } else if old.is_mapped() && old.frame() == new.frame() {
            self.note_one(spaces, id, index, new);
            let (va, rights) = (self.address(id, index), rights_of(new));
            emit(spaces, space, |batch, area| batch.protect(area, va, 1, rights));
        } else {
            self.note_one(spaces, id, index, new);
            self.emit_map(spaces, id, index, 1, new);
        }
        if spaces.get(space).is_some_and(|s| s.batch.overflowed()) {
            self.drop_space(spaces, space);
        }
    }

    /// The frame was something else for a while: whatever was derived from it as a table goes.
    fn forget_table(&mut self, spaces: &mut [Space], frame: Mfn) {
        for level in 0..3 {
            while let Some(id) = self.chunks.first_of_table(level, frame.0) {
                self.drop_chunk(spaces, id);
            }
        }
        for s in 0..spaces.len() {
            if spaces.get(s).is_some_and(|space| space.root == Some(frame)) {
                self.drop_space(spaces, s);
            }
        }
    }

    /// Unmaps everything of a process.
    pub fn drop_space(&mut self, spaces: &mut [Space], s: usize) {
        let Some(space) = spaces.get_mut(s) else { return };
        let untouched = space.runs == 0 && space.batch.is_empty();
        space.runs = 0;
        if !untouched && let Some(area) = space.child.batches() {
            space.batch.unmap_all(area);
        }
        let Ok(number) = u8::try_from(s) else { return };
        let mut from = 0;
        while let Some((id, next)) = self.chunks.next_of_space(number, from) {
            self.chunks.remove(id);
            from = next;
        }
    }

    fn drop_where(&mut self, spaces: &mut [Space], s: usize, matches: impl Fn(&Chunks, Id) -> bool) {
        let Ok(number) = u8::try_from(s) else { return };
        let mut from = 0;
        while let Some((id, next)) = self.chunks.next_of_space(number, from) {
            if matches(&self.chunks, id) {
                self.drop_chunk(spaces, id);
            }
            from = next;
        }
    }

    fn drop_chunk(&mut self, spaces: &mut [Space], id: Id) {
        let (space, runs) = (usize::from(self.chunks.space(id)), self.chunks.runs(id));
        let va = self.address(id, 0);
        self.chunks.remove(id);
        if runs == 0 {
            return;
        }
        if let Some(s) = spaces.get_mut(space) {
            s.runs = s.runs.saturating_sub(runs);
        }
        emit(spaces, space, |batch, area| batch.unmap(area, va, PAGES as u64, 0));
        if spaces.get(space).is_some_and(|s| s.batch.overflowed()) {
            self.drop_space(spaces, space);
        }
    }

    /// Makes room in the pool: the address space that was not used for longest loses what it has.
    fn evict(&mut self, spaces: &mut [Space], current: usize) {
        let others = spaces.iter().enumerate().filter(|(s, space)| *s != current && space.runs != 0);
        let victim = others.min_by_key(|(_, space)| space.last_used).map_or(current, |(s, _)| s);
        self.drop_space(spaces, victim);
    }

    /// How many pages of a chunk lie between `from` and the page `index`, if none of them is mapped.
    fn gap(&self, id: Id, from: u64, index: usize) -> u64 {
        let first = from.checked_sub(self.address(id, 0)).map_or(usize::MAX, |o| (o >> PAGE_SHIFT) as usize);
        let empty = |i: usize| !self.chunks.page(id, i).is_mapped();
        if first < index && (first..index).all(empty) { (index - first) as u64 } else { 0 }
    }
    fn address(&self, id: Id, index: usize) -> u64 {
        self.chunks.base(id) << CHUNK_SHIFT | (index as u64) << PAGE_SHIFT
    }

    fn note_one(&mut self, spaces: &mut [Space], id: Id, index: usize, page: Page) {
        let delta = self.chunks.set_page(id, index, page);
        if let Some(space) = spaces.get_mut(usize::from(self.chunks.space(id))) {
            space.runs = space.runs.saturating_add_signed(delta);
        }
    }
    fn note(&mut self, spaces: &mut [Space], id: Id, first: usize, count: usize, page: Page) {
        for (frame, index) in (page.frame()..).zip(first..first + count) {
            self.note_one(spaces, id, index, Page::new(frame, page.writable(), page.executable()));
        }
    }
    fn emit_map(&mut self, spaces: &mut [Space], id: Id, first: usize, count: usize, page: Page) {
        let va = self.address(id, first);
        emit(spaces, usize::from(self.chunks.space(id)), |batch, area| {
            batch.map(area, va, count as u64, page.frame(), rights_of(page));
        });
    }
    fn emit_populate(&self, spaces: &mut [Space], id: Id, va: u64, first: usize, count: usize) {
        let start = self.address(id, first);
        emit(spaces, usize::from(self.chunks.space(id)), |batch, area| {
            batch.populate_around(area, va, start, count as u64);
        });
    }
}

fn emit(spaces: &mut [Space], s: usize, f: impl FnOnce(&mut Batch, &Area)) {
    if let Some(space) = spaces.get_mut(s)
        && let Some(area) = space.child.batches()
    {
        f(&mut space.batch, area);
    }
}

fn rights_of(page: Page) -> Rights {
    Rights { write: page.writable(), execute: page.executable() }
}

/// Sets the accessed bit of every entry on the way, and the leaf's dirty bit for a store. `false` if an entry is
/// another by now: what it is then is not for us to change (SDM vol. 3, 4.8: the processor does both in one access).
fn set_accessed(memory: &MachineMemory, t: &Translation, write: bool) -> bool {
    (t.level..=4).filter_map(|level| Some((level, t.step(level)?))).all(|(level, step)| {
        let dirty = if write && level == t.level { pte::DIRTY } else { 0 };
        let new = step.value | pte::ACCESSED | dirty;
        new == step.value
            || memory.compare_exchange_u64(step.entry, step.value, new).is_ok_and(|set| set.is_ok())
    })
}
