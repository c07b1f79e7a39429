//! The shadow's frames, what each one shadows, and the reverse maps of references.
//!
//! Two reverse maps share one kind of list ([`Links`]): from a shadow table to the shadow entries that refer
//! to it (its parents), and from a guest frame to the shadow leaves that map it writable. All arrays are
//! sized when the domain is made; untouched parts of them cost no memory, and nothing here allocates later.
//!
//! Code here may not read or write an entry.

use std::ops::Range;

use super::view::View;
use crate::host::zeroed::{NoMemory, room, zeroed};
use crate::machine::memory::Mfn;

/// Entries in a table.
pub(super) const SLOTS: u64 = paravane_abi::addr::PT_ENTRIES as u64;

/// What a shadow table derives from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The guest's table in this frame.
    Guest(u64),
    /// A part of a large page, whose first frame this is.
    Split(u64),
    /// Nothing: it leads to pages of ours.
    Overlay,
}

/// One shadow table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub source: Source,
    pub level: u8,
    pub view: View,
    /// How many entries are not zero.
    pub live: u16,
    /// The entries that refer to this table.
    parents: Link,
    /// The next table that derives from the same guest frame; while free, the next free table.
    next: Handle,
    used: bool,
}

/// Index of a table plus one; zero is none.
type Handle = u32;
/// Number of a shadow entry plus one (`table * 512 + slot + 1`); zero is none.
pub(super) type Link = u32;

/// Doubly linked lists of shadow entries; an entry is in one list at most.
#[derive(Debug)]
struct Links {
    next: Vec<Link>,
    prev: Vec<Link>,
}

impl Links {
    fn set(list: &mut [Link], link: Link, value: Link) {
        if let Some(cell) = (link as usize).checked_sub(1).and_then(|i| list.get_mut(i)) {
            *cell = value;
        }
    }
    fn get(list: &[Link], link: Link) -> Link {
        (link as usize).checked_sub(1).and_then(|i| list.get(i)).copied().unwrap_or(0)
    }
    fn push(&mut self, head: &mut Link, link: Link) {
        Self::set(&mut self.next, link, *head);
        Self::set(&mut self.prev, link, 0);
        Self::set(&mut self.prev, *head, link);
        *head = link;
    }
    fn remove(&mut self, head: &mut Link, link: Link) {
        let (next, prev) = (Self::get(&self.next, link), Self::get(&self.prev, link));
        Self::set(&mut self.prev, next, prev);
        if prev == 0 { *head = next } else { Self::set(&mut self.next, prev, next) }
    }
}

/// All shadow tables and the reverse maps.
#[derive(Debug)]
pub(super) struct Pool {
    frames: Range<u64>,
    tables: Vec<Table>,
    free: Handle,
    in_use: usize,
    links: Links,
    /// By guest frame: the first table that derives from it.
    derived: Vec<Handle>,
    /// By guest frame: the leaves that map it writable.
    writers: Vec<Link>,
    /// By guest frame: the number of trapped stores since its last use as a table.
    stores: Vec<u16>,
}

impl Pool {
    pub(super) fn new(frames: Range<u64>, guest_frames: u64) -> Result<Self, NoMemory> {
        const WHAT: &str = "the book of shadow page tables";
        // Links are 32 bits wide: 2^23 tables, 32 GiB of them, is all that can be told apart.
        let count = frames.end.saturating_sub(frames.start).min((1 << 23) - 1);
        let entries = count * SLOTS;
        Ok(Self {
            frames: frames.start..frames.start + count,
            tables: room(WHAT, count)?,
            free: 0,
            in_use: 0,
            links: Links { next: zeroed(WHAT, entries)?, prev: zeroed(WHAT, entries)? },
            derived: zeroed(WHAT, guest_frames)?,
            writers: zeroed(WHAT, guest_frames)?,
            stores: zeroed(WHAT, guest_frames)?,
        })
    }

    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    pub(super) fn table(&self, index: u32) -> &Table {
        &self.tables[index as usize]
    }

    pub(super) fn table_mut(&mut self, index: u32) -> &mut Table {
        &mut self.tables[index as usize]
    }

    /// The frame that holds table `index`.
    pub(super) fn mfn(&self, index: u32) -> Mfn {
        Mfn(self.frames.start + u64::from(index))
    }

    /// The shadow table in frame `mfn`, if one is in use there.
    pub(super) fn at(&self, mfn: u64) -> Option<u32> {
        let index = u32::try_from(mfn.checked_sub(self.frames.start)?).ok()?;
        self.tables.get(index as usize)?.used.then_some(index)
    }

    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        self.tables.clear();
        (self.free, self.in_use) = (0, 0);
        // The links need not be cleared: whatever is linked again is set first.
        self.derived.fill(0);
        self.writers.fill(0);
        self.stores.fill(0);
    }

    /// The frames that have ever held a table since the last [`Pool::reset`].
    pub(super) fn touched_frames(&self) -> Range<u64> {
        self.frames.start..self.frames.start + self.tables.len() as u64
    }

    /// Takes a free table, all of whose entries are zero; `None` when all are in use.
    pub(super) fn take(&mut self, source: Source, level: u8, view: View) -> Option<u32> {
        let mut table = Table { source, level, view, live: 0, parents: 0, next: 0, used: true };
        let index = self.take_free(table)?;
        if let Source::Guest(pfn) = source
            && let Some(head) = self.derived.get_mut(pfn as usize)
        {
            table.next = std::mem::replace(head, index + 1);
            self.reset_stores(pfn);
        }
        *self.table_mut(index) = table;
        self.in_use += 1;
        Some(index)
    }

    fn take_free(&mut self, table: Table) -> Option<u32> {
        if let Some(index) = self.free.checked_sub(1) {
            self.free = self.table(index).next;
            return Some(index);
        }
        // `new` bounded the number of frames, and so of tables, to less than 2^23.
        let fresh = self.tables.len() as u32;
        if u64::from(fresh) >= self.frames.end - self.frames.start {
            return None;
        }
        self.tables.push(table);
        Some(fresh)
    }

    /// Gives back a table that nothing refers to and all of whose entries are zero.
    pub(super) fn give(&mut self, index: u32) {
        let Table { source, next, .. } = *self.table(index);
        if let Source::Guest(pfn) = source {
            self.unchain(pfn, index + 1, next);
        }
        let free = self.free;
        let table = self.table_mut(index);
        (table.used, table.next) = (false, free);
        self.free = index + 1;
        self.in_use -= 1;
    }

    fn unchain(&mut self, pfn: u64, handle: Handle, next: Handle) {
        let Some(head) = self.derived.get_mut(pfn as usize) else { return };
        if *head == handle {
            *head = next;
            return;
        }
        let mut at = *head;
        while at != 0 {
            let table = self.table_mut(at - 1);
            if table.next == handle {
                table.next = next;
                return;
            }
            at = table.next;
        }
    }

    /// Whether some shadow table derives from the guest frame.
    pub(super) fn is_table(&self, pfn: u64) -> bool {
        self.derived.get(pfn as usize).is_some_and(|&head| head != 0)
    }

    /// The tables that derive from the guest frame: at most one for each level and view.
    pub(super) fn derived(&self, pfn: u64) -> [Option<u32>; 8] {
        let mut found = [None; 8];
        let mut at = self.derived.get(pfn as usize).copied().unwrap_or(0);
        for place in &mut found {
            if at == 0 {
                break;
            }
            *place = Some(at - 1);
            at = self.table(at - 1).next;
        }
        found
    }

    /// The table of `level` for `view` that derives from the guest frame.
    pub(super) fn find(&self, pfn: u64, level: u8, view: View) -> Option<u32> {
        let matches = |&index: &u32| {
            let table = self.table(index);
            table.level == level && table.view == view
        };
        self.derived(pfn).into_iter().flatten().find(matches)
    }

    /// The link of an entry.
    pub(super) fn link(table: u32, slot: u64) -> Link {
        table * SLOTS as u32 + (slot % SLOTS) as u32 + 1
    }

    /// The table and slot that a link stands for.
    pub(super) fn entry(link: Link) -> Option<(u32, u64)> {
        let number = link.checked_sub(1)?;
        Some((number / SLOTS as u32, u64::from(number) % SLOTS))
    }

    pub(super) fn add_parent(&mut self, child: u32, link: Link) {
        self.links.push(&mut self.tables[child as usize].parents, link);
    }
    pub(super) fn remove_parent(&mut self, child: u32, link: Link) {
        self.links.remove(&mut self.tables[child as usize].parents, link);
    }
    /// One of the entries that refer to `child`.
    pub(super) fn parent(&self, child: u32) -> Option<(u32, u64)> {
        Self::entry(self.table(child).parents)
    }

    pub(super) fn add_writer(&mut self, pfn: u64, link: Link) {
        if let Some(head) = self.writers.get_mut(pfn as usize) {
            self.links.push(head, link);
        }
    }
    pub(super) fn remove_writer(&mut self, pfn: u64, link: Link) {
        if let Some(head) = self.writers.get_mut(pfn as usize) {
            self.links.remove(head, link);
        }
    }
    /// One of the leaves that map the guest frame writable.
    pub(super) fn writer(&self, pfn: u64) -> Option<(u32, u64)> {
        Self::entry(self.writers.get(pfn as usize).copied()?)
    }

    /// Counts trapped stores to a table that made no use of it; returns how many there were in a row.
    pub(super) fn count_stores(&mut self, pfn: u64, n: u16) -> u16 {
        self.stores.get_mut(pfn as usize).map_or(0, |count| {
            *count = count.saturating_add(n);
            *count
        })
    }
    /// Notes that the guest frame was used as a table.
    pub(super) fn reset_stores(&mut self, pfn: u64) {
        if let Some(count) = self.stores.get_mut(pfn as usize) {
            *count = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_taken_found_and_given_back() {
        let mut pool = Pool::new(10..13, 4).unwrap();
        let a = pool.take(Source::Guest(2), 4, View::Kernel).unwrap();
        let b = pool.take(Source::Guest(2), 1, View::Kernel).unwrap();
        let c = pool.take(Source::Split(2), 1, View::User).unwrap();
        assert_eq!(pool.take(Source::Guest(3), 1, View::User), None, "three frames, three tables");
        assert_eq!((pool.find(2, 4, View::Kernel), pool.find(2, 1, View::Kernel)), (Some(a), Some(b)));
        assert_eq!(pool.find(2, 1, View::User), None, "a split page is not a guest's table");
        assert_eq!(pool.at(pool.mfn(c).0), Some(c));
        pool.give(a);
        assert_eq!((pool.find(2, 4, View::Kernel), pool.at(pool.mfn(a).0)), (None, None));
        assert!(pool.is_table(2));
        pool.give(b);
        assert!(!pool.is_table(2));
        assert_eq!(pool.take(Source::Guest(3), 1, View::User), Some(b));
        assert_eq!(pool.in_use(), 2);
    }

    #[test]
    fn links_survive_removal_anywhere() {
        let mut pool = Pool::new(0..2, 1).unwrap();
        let table = pool.take(Source::Split(0), 1, View::Kernel).unwrap();
        let links: Vec<Link> = (0..3).map(|slot| Pool::link(table, slot)).collect();
        for first in 0..3 {
            links.iter().for_each(|&l| pool.add_writer(0, l));
            pool.remove_writer(0, links[first]);
            for i in (0..3).filter(|&i| i != first) {
                assert!(pool.writer(0).is_some());
                pool.remove_writer(0, links[i]);
            }
            assert_eq!(pool.writer(0), None);
        }
        assert_eq!(Pool::entry(Pool::link(1, 511)), Some((1, 511)));
    }
}
