//! Which page-table stores the gate must repeat, and how: the work list of `apply`.
//!
//! A KVM that shadows page tables never learns of an entry that the host changed. It need not when the
//! entry was not present before (nothing was cached). Otherwise the gate stores it again:
//!
//! * a few entries of one table: each by an 8-byte store (about 4.5 us where ring 0 is interpreted);
//! * more of them: one 1-byte store into the table, which makes KVM drop all that it cached of it (5 us, and
//!   about 4 us for each page of that table that is touched again). Not to the first byte of an entry: KVM
//!   takes such a store for an update of that entry's flags and keeps the others;
//! * more tables than the list holds, or everything stale: the caller zaps all (a memory slot added and
//!   deleted; 30-70 us and every page is touched anew).
//!
//! Without shadow paging the stores cost nanoseconds and the TLB flush after them does the work.

use paravane_abi::pte;

use crate::machine::memory::Mfn;
use crate::mmu::log::PteWrite;

/// Where in a table the store goes that drops all of it.
const INSIDE_ENTRY: u64 = 1;
/// Entries of one table that are still stored one by one.
const SINGLE_STORES: usize = 3;
/// Most u64 words of a work list.
pub const WORK_WORDS: usize = 1024;
/// Most tables and single entries in one list; one word each, and two for the counts.
const MAX_ITEMS: usize = WORK_WORDS - 2;
/// Most tables that are planned for: each may come to a full set of single stores.
const MAX_TABLES: usize = MAX_ITEMS / SINGLE_STORES;

/// A table with changed entries, while planning.
#[derive(Clone, Copy, Debug)]
struct Table {
    base: u64,
    entries: [u64; SINGLE_STORES],
    count: usize,
}

/// Plans work lists; owns its buffers so that planning does not allocate.
#[derive(Debug)]
pub struct Planner {
    tables: Vec<Table>,
    work: Vec<u64>,
}

/// What must happen before the guest runs again.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan<'a> {
    /// Nothing: no cached translation can be stale.
    Nothing,
    /// The gate applies this list: count of tables, their addresses, count of entries, their addresses.
    Apply(&'a [u64]),
    /// Everything that is cached must go.
    Zap,
}

impl Planner {
    /// A planner with room for the largest list.
    pub fn new() -> Self {
        Self { tables: Vec::with_capacity(MAX_ITEMS), work: Vec::with_capacity(WORK_WORDS) }
    }

    /// Forgets what it has planned: that has been applied.
    pub fn clear(&mut self) {
        self.tables.clear();
    }

    /// Plans for `writes` and for tables that are `reused`, whatever is cached of which must go, besides all that was
    /// planned before and not [cleared](Self::clear). Addresses in the list are `physmap` + the machine address.
    pub fn plan<'a>(
        &mut self,
        writes: impl IntoIterator<Item = &'a PteWrite>,
        reused: impl IntoIterator<Item = Mfn>,
        physmap: u64,
    ) -> Plan<'_> {
        for table in reused {
            if !self.note_table(table.maddr().0) {
                return Plan::Zap;
            }
        }
        for write in writes.into_iter().filter(|w| w.old & pte::PRESENT != 0) {
            if !self.note(write.entry.0) {
                return Plan::Zap;
            }
        }
        if self.tables.is_empty() {
            return Plan::Nothing;
        }
        self.work.clear();
        let whole = |t: &&Table| t.count > SINGLE_STORES;
        self.work.push(self.tables.iter().filter(whole).count() as u64);
        self.work.extend(self.tables.iter().filter(whole).map(|t| physmap + t.base + INSIDE_ENTRY));
        let singles = self.tables.iter().filter(|t| t.count <= SINGLE_STORES);
        self.work.push(singles.clone().map(|t| t.count as u64).sum());
        for table in singles {
            self.work.extend(table.entries.iter().take(table.count).map(|e| physmap + e));
        }
        if self.work.len() > WORK_WORDS { Plan::Zap } else { Plan::Apply(&self.work) }
    }

    /// Adds a whole table; false when there is no room for it.
    fn note_table(&mut self, base: u64) -> bool {
        let room = self.tables.len() < MAX_TABLES;
        if room {
            self.tables.push(Table { base, entries: [0; SINGLE_STORES], count: SINGLE_STORES + 1 });
        }
        room
    }

    /// Adds one changed entry; false when there is no room for another table.
    fn note(&mut self, entry: u64) -> bool {
        let base = entry & !0xfff;
        let full = self.tables.len() == MAX_TABLES;
        // Neighbouring writes usually fall into the table noted last: look from the end.
        match self.tables.iter_mut().rev().take(64).find(|t| t.base == base) {
            Some(table) => {
                let known = table.entries.iter().take(table.count).any(|&e| e == entry);
                if !known {
                    if let Some(slot) = table.entries.get_mut(table.count) {
                        *slot = entry;
                    }
                    table.count = (table.count + 1).min(SINGLE_STORES + 1);
                }
            }
            None if full => return false,
            None => {
                let mut entries = [0; SINGLE_STORES];
                entries[0] = entry;
                self.tables.push(Table { base, entries, count: 1 });
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::Maddr;

    fn write(entry: u64, old: u64) -> PteWrite {
        PteWrite { entry: Maddr(entry), old, new: 0x42, level: 1 }
    }

    #[test]
    fn entries_that_were_not_present_need_nothing() {
        let writes: Vec<_> = (0..600).map(|n| write(0x1000 + n * 8, 0)).collect();
        assert_eq!(Planner::new().plan(&writes, [], 0), Plan::Nothing);
    }

    #[test]
    fn few_entries_are_stored_and_many_drop_the_table() {
        let mut p = Planner::new();
        let one = [write(0x1008, 1), write(0x1008, 1)];
        assert_eq!(p.plan(&one, [], 0x100_0000), Plan::Apply(&[0, 1, 0x100_1008]));
        p.clear();
        let mut many: Vec<_> = (0..512).map(|n| write(0x2000 + n * 8, 1)).collect();
        many.push(write(0x5010, 1));
        assert_eq!(p.plan(&many, [], 0x100_0000), Plan::Apply(&[1, 0x100_2001, 1, 0x100_5010]));
    }

    #[test]
    fn a_reused_table_goes_as_a_whole() {
        let mut p = Planner::new();
        assert_eq!(p.plan([], [Mfn(7)], 0x100_0000), Plan::Apply(&[1, 0x100_7001, 0]));
        p.clear();
        assert_eq!(p.plan([], [Mfn(7); MAX_TABLES + 1], 0), Plan::Zap);
    }

    /// An entry that was interrupted in the gate applied part of a list or nothing.
    #[test]
    fn what_was_not_applied_is_planned_again() {
        let mut p = Planner::new();
        p.plan(&[write(0x1008, 1)], [], 0);
        assert_eq!(p.plan([], [], 0), Plan::Apply(&[0, 1, 0x1008]));
        assert_eq!(p.plan(&[write(0x2010, 1)], [], 0), Plan::Apply(&[0, 2, 0x1008, 0x2010]));
        p.clear();
        assert_eq!(p.plan([], [], 0), Plan::Nothing);
    }

    #[test]
    fn too_many_tables_zap() {
        let writes: Vec<_> = (0..4096).map(|n| write(n << 12, 1)).collect();
        assert_eq!(Planner::new().plan(&writes, [], 0), Plan::Zap);
    }

    #[test]
    fn every_list_fits_its_pages() {
        let mut p = Planner::new();
        for tables in [1u64, 100, 340, 341] {
            p.clear();
            let writes: Vec<_> = (0..tables * 3).map(|n| write((n / 3) << 12 | (n % 3) << 3, 1)).collect();
            match p.plan(&writes, [], 0) {
                Plan::Apply(list) => assert!(list.len() <= WORK_WORDS),
                other => assert!(tables > 340, "{tables} tables: {other:?}"),
            }
        }
    }
}
