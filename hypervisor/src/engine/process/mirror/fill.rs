//! Filling: what is mapped when a page fault asks for one page.
//!
//! The page, the neighbours that continue it, and a window of further pages of the same L1 table that the
//! guest marks as accessed. The window doubles with each fault in a chunk: a guest that uses a whole table
//! pays a few faults, one that uses one page of it a few mappings. Nothing that the tables do not say.

use paravane_abi::pte;
use zerocopy::IntoBytes;

use super::chunks::{Id, PAGES, Page};
use super::{CHUNK_SHIFT, Filled, Mirror};
use crate::engine::process::space::Space;
use crate::machine::memory::{MachineMemory, Maddr, Mfn, PAGE_SHIFT};
use crate::x86::walk::Translation;

/// A copy of an L1 table, to be looked at often.
struct Table([u64; PAGES]);

impl Table {
    fn read(memory: &MachineMemory, at: Maddr) -> Self {
        let mut entries = [0; PAGES];
        // A table that is not there maps nothing.
        let _ = memory.read(at, entries.as_mut_bytes());
        Self(entries)
    }
}

/// What to make of the entries of one chunk.
struct View<'a> {
    mirror: &'a Mirror,
    memory: &'a MachineMemory,
    table: &'a Table,
    id: Id,
    rights: (bool, bool),
    /// Pages below this address cannot be mapped.
    first: usize,
}

impl View<'_> {
    /// What the table maps at a page, if the process can have it.
    fn want(&self, index: usize) -> Option<Page> {
        if index < self.first {
            return None;
        }
        let entry = *self.table.0.get(index)?;
        self.mirror.page_of(self.memory, entry, self.rights)
    }
    fn has(&self, index: usize) -> Page {
        self.mirror.chunks.page(self.id, index)
    }
    /// What is wanted and not there yet, next after `page` at `index - 1`.
    fn continuation(&self, index: usize, page: Page) -> Option<Page> {
        let next = self.want(index)?;
        (next.continues(page) && self.has(index) != next).then_some(next)
    }
    /// The pages around `index` that one mapping can hold: the first, what it maps, and the end.
    fn extent(&self, index: usize, page: Page) -> (usize, Page, usize) {
        let (mut first, mut start) = (index, page);
        while let Some((i, p)) = first.checked_sub(1).and_then(|i| Some((i, self.want(i)?)))
            && start.continues(p)
            && self.has(i) != p
        {
            (first, start) = (i, p);
        }
        (first, start, self.end(index, page))
    }
    fn end(&self, index: usize, page: Page) -> usize {
        let (mut end, mut last) = (index + 1, page);
        while let Some(next) = self.continuation(end, last) {
            (end, last) = (end + 1, next);
        }
        end
    }
}

impl Mirror {
    fn view<'a>(&'a self, memory: &'a MachineMemory, table: &'a Table, id: Id) -> View<'a> {
        let (rights, first) = (self.chunks.rights(id), self.first_page(id));
        View { mirror: self, memory, table, id, rights, first }
    }

    /// Maps the page of `va` and what is likely to be wanted with it.
    pub(super) fn fill_small(
        &mut self,
        spaces: &mut [Space],
        id: Id,
        memory: &MachineMemory,
        va: u64,
        t: &Translation,
    ) -> Filled {
        let index = (va >> PAGE_SHIFT) as usize % PAGES;
        let table = Table::read(memory, t.leaf().entry.mfn().maddr());
        let view = self.view(memory, &table, id);
        let Some(page) = view.want(index) else {
            // Changed since it was walked: the guest's next access finds out.
            return Filled::Again;
        };
        if view.has(index) == page {
            self.emit_map(spaces, id, index, 1, page);
            return Filled::Again;
        }
        let (first, start, end) = view.extent(index, page);
        self.map_run(spaces, id, first, start, end);
        if end - first > 1 {
            self.emit_populate(spaces, id, va, first, end - first);
        }
        let window = self.chunks.widen(id);
        self.fill_ahead(spaces, id, memory, &table, end, window);
        Filled::Mapped
    }

    /// Maps up to `runs` more runs of accessed pages, upwards from page `from` and around.
    fn fill_ahead(
        &mut self,
        spaces: &mut [Space],
        id: Id,
        memory: &MachineMemory,
        table: &Table,
        from: usize,
        mut runs: u32,
    ) {
        for range in [from..PAGES, 0..from] {
            let mut index = range.start;
            while index < range.end && runs > 0 {
                let view = self.view(memory, table, id);
                let wanted = view.want(index).filter(|_| !view.has(index).is_mapped());
                let Some(page) = wanted else {
                    index += 1;
                    continue;
                };
                let end = view.end(index, page);
                self.map_run(spaces, id, index, page, end);
                (index, runs) = (end, runs - 1);
            }
        }
    }

    fn map_run(&mut self, spaces: &mut [Space], id: Id, first: usize, page: Page, end: usize) {
        self.note(spaces, id, first, end - first, page);
        self.emit_map(spaces, id, first, end - first, page);
    }

    /// Maps the chunk's part of a large page.
    pub(super) fn fill_large(
        &mut self,
        spaces: &mut [Space],
        id: Id,
        memory: &MachineMemory,
        va: u64,
        t: &Translation,
        write: bool,
    ) -> Filled {
        let within = t.page_size() - 1;
        let start = (t.physical & !within) | (va & within & !((1 << CHUNK_SHIFT) - 1));
        let frame = start >> PAGE_SHIFT;
        let last = frame.saturating_add(PAGES as u64 - 1);
        if !memory.is_frame(Mfn(last)) || !self.may_be_written(frame) {
            return Filled::Unmappable;
        }
        let dirty = write || t.leaf().value & pte::DIRTY != 0;
        let first = self.first_page(id);
        let page = Page::new(frame + first as u64, t.writable && dirty, t.executable);
        let known = self.chunks.page(id, first) == page;
        self.note(spaces, id, first, PAGES - first, page);
        self.emit_map(spaces, id, first, PAGES - first, page);
        self.emit_populate(spaces, id, va, first, PAGES - first);
        if known { Filled::Again } else { Filled::Mapped }
    }
}
