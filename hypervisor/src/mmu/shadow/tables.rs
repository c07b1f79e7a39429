//! The life of a shadow table: derived from a guest's, changed entry by entry, freed when nothing refers to it.
//!
//! [`Shadow::set_entry`] is the only place that stores into a shadow table. A table refers to tables of lower
//! levels only, so that freeing one recurses three times at most.

use paravane_abi::pte;

use super::pool::{Pool, SLOTS, Source, Table};
use super::slots::is_reserved_slot;
use super::state::Shadow;
use super::view::View;
use crate::machine::memory::{MachineMemory, Maddr};
use crate::mmu::log::{PteWrite, TableLog};

impl Shadow {
    /// Takes a table for the guest's table in frame `pfn`, which is write-protected from now on.
    pub(super) fn derive(
        &mut self,
        mem: &MachineMemory,
        log: &mut TableLog,
        pfn: u64,
        level: u8,
        view: View,
    ) -> Option<u32> {
        let table = self.pool.take(Source::Guest(pfn), level, view)?;
        self.protect_writers(mem, log, pfn);
        Some(table)
    }

    /// Takes the right to store to the guest frame `pfn` from every leaf that has it.
    pub(super) fn protect_writers(&mut self, mem: &MachineMemory, log: &mut TableLog, pfn: u64) {
        let mut protected = false;
        while let Some((writer, slot)) = self.pool.writer(pfn) {
            let entry = self.load(mem, writer, slot);
            self.set_entry(mem, log, writer, slot, entry & !pte::RW);
            protected = true;
        }
        if protected {
            log.flush_all();
        }
    }

    pub(super) fn load(&self, mem: &MachineMemory, table: u32, slot: u64) -> u64 {
        // Shadow frames are machine memory: `Shadow::new` was given them.
        mem.load_u64(self.slot_addr(table, slot)).unwrap_or(0)
    }

    /// Changes one shadow entry: the only way to. Keeps the reverse maps, tells the engine, and frees the
    /// table that the entry referred to if nothing else does.
    pub(super) fn set_entry(
        &mut self,
        mem: &MachineMemory,
        log: &mut TableLog,
        table: u32,
        slot: u64,
        new: u64,
    ) {
        let entry = self.slot_addr(table, slot);
        let old = self.load(mem, table, slot);
        if old == new || mem.store_u64(entry, new).is_err() {
            return;
        }
        let Table { level, view, .. } = *self.pool.table(table);
        if !self.overlay.is_empty() && view == View::Kernel {
            self.overlay.note(level, slot, new);
        }
        log.wrote(PteWrite { entry, old, new, level });
        let orphan = self.relink(mem, table, slot, level, old, new);
        let live = &mut self.pool.table_mut(table).live;
        match (old, new) {
            (0, _) => *live += 1,
            (_, 0) => *live -= 1,
            _ => {}
        }
        if let Some(orphan) = orphan {
            self.free_table(mem, log, orphan);
        }
    }

    /// Moves an entry from the list of its old target to that of its new one; returns a table left without
    /// a parent.
    fn relink(
        &mut self,
        mem: &MachineMemory,
        table: u32,
        slot: u64,
        level: u8,
        old: u64,
        new: u64,
    ) -> Option<u32> {
        let link = Pool::link(table, slot);
        if level == 1 {
            let writes = |entry: u64| {
                let mapped = entry & (pte::PRESENT | pte::RW) == pte::PRESENT | pte::RW;
                mapped.then(|| mem.mfn_to_pfn(Maddr(entry & pte::ADDR_MASK).mfn())).flatten()
            };
            let (before, after) = (writes(old), writes(new));
            if before != after {
                before.inspect(|&pfn| self.pool.remove_writer(pfn, link));
                after.inspect(|&pfn| self.pool.add_writer(pfn, link));
            }
            return None;
        }
        let (before, after) = (self.child(old), self.child(new));
        if before == after {
            return None;
        }
        before.inspect(|&child| self.pool.remove_parent(child, link));
        after.inspect(|&child| self.pool.add_parent(child, link));
        before.filter(|&child| self.pool.parent(child).is_none())
    }

    /// The shadow table that a shadow entry of level 2 or more refers to.
    pub(super) fn child(&self, entry: u64) -> Option<u32> {
        if entry & pte::PRESENT == 0 { None } else { self.pool.at(pte::mfn(entry)) }
    }

    /// Empties and gives back a table that no entry refers to, and what only it referred to.
    ///
    /// The flush is needed for the shadow itself, not for the guest: a CPU must not walk a frame by a stale reference
    /// once the frame serves another level.
    pub(super) fn free_table(&mut self, mem: &MachineMemory, log: &mut TableLog, table: u32) {
        self.clear_table(mem, log, table, |_| true);
        self.pool.give(table);
        log.flush_all();
    }

    fn clear_table(
        &mut self,
        mem: &MachineMemory,
        log: &mut TableLog,
        table: u32,
        goes: impl Fn(u64) -> bool,
    ) {
        for slot in (0..SLOTS).filter(|&slot| goes(slot)) {
            if self.pool.table(table).live == 0 {
                break;
            }
            self.set_entry(mem, log, table, slot, 0);
        }
    }

    /// Drops every shadow of the guest frame `pfn`, so that it may be written freely.
    ///
    /// The root in use cannot go; it is emptied instead, and its frame stays protected.
    pub(super) fn unshadow(&mut self, mem: &MachineMemory, log: &mut TableLog, pfn: u64) {
        for table in self.pool.derived(pfn).into_iter().flatten() {
            if !self.still_derives(table, pfn) {
                continue;
            }
            if self.roots.current() == Some(table) {
                self.clear_table(mem, log, table, |slot| !is_reserved_slot(slot));
                log.flush_all();
            } else if self.pool.table(table).level == 4 {
                self.roots.forget(table);
                self.free_table(mem, log, table);
            } else {
                // Removing the last parent entry frees the table.
                while let Some((parent, slot)) = self.parent_of(table, pfn) {
                    self.set_entry(mem, log, parent, slot, 0);
                }
            }
        }
        self.pool.reset_stores(pfn);
    }

    fn parent_of(&self, table: u32, pfn: u64) -> Option<(u32, u64)> {
        if self.still_derives(table, pfn) { self.pool.parent(table) } else { None }
    }

    /// Whether `table` is in use and derives from `pfn`: freeing one table may have freed another.
    pub(super) fn still_derives(&self, table: u32, pfn: u64) -> bool {
        self.pool.table(table).source == Source::Guest(pfn)
            && self.pool.at(self.pool.mfn(table).0) == Some(table)
    }
}
