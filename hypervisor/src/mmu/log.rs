//! What a domain's page tables went through, for all of its virtual CPUs.
//!
//! Whoever changes an entry of a page table stores it in machine memory and then notes it here. Each virtual CPU has a
//! [`Cursor`] into the log and reads on from there before it enters the guest, so that an engine that caches
//! translations (a shadow-paging KVM, a mirror of mappings in a process) learns of every change once.
//!
//! Capacity is fixed when the log is made. A reader that falls further behind than that learns that all it has cached
//! is stale, so that nothing here allocates later and nothing that a guest does makes it grow.
//!
//! What may not be done here: knowing who reads, or what a reader does with it.

use crate::machine::memory::{Maddr, Mfn};

/// One page-table entry that was written, in machine memory already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PteWrite {
    /// Machine address of the entry, 8-byte aligned.
    pub entry: Maddr,
    /// What it held before.
    pub old: u64,
    /// What it holds now.
    pub new: u64,
    /// Level of the table that holds it: 1..=4.
    pub level: u8,
}

/// The log of a domain.
#[derive(Debug)]
pub struct TableLog {
    writes: Ring<PteWrite>,
    reused: Ring<Mfn>,
    /// How often everything was declared stale.
    epoch: u64,
    /// How often a flush of every virtual CPU was asked for.
    flushes: u64,
}

/// How far a virtual CPU has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    writes: u64,
    reused: u64,
    epoch: u64,
    flushes: u64,
}

/// What a virtual CPU has not read yet.
#[derive(Clone, Copy, Debug)]
pub enum Unread<'a> {
    /// All that was ever cached of any page table is stale, and so is every translation.
    Stale,
    /// Single changes.
    Changes {
        /// Entries that were written, in order.
        writes: Since<'a, PteWrite>,
        /// Frames that became page tables again, see [`TableLog::reused_table`].
        reused: Since<'a, Mfn>,
        /// Whether every cached translation must go.
        flush: bool,
    },
}

impl Default for TableLog {
    fn default() -> Self {
        Self {
            writes: Ring::new(Self::CAPACITY),
            reused: Ring::new(Self::REUSED_CAPACITY),
            epoch: 0,
            flushes: 0,
        }
    }
}

impl TableLog {
    /// By how many entry writes a reader may fall behind before everything is stale for it.
    pub const CAPACITY: usize = 4096;
    /// By how many reused tables a reader may fall behind before everything is stale for it.
    pub const REUSED_CAPACITY: usize = 256;

    /// Notes that an entry was written (the value is in machine memory already).
    pub fn wrote(&mut self, write: PteWrite) {
        if write.old != write.new {
            self.writes.push(write);
        }
    }

    /// Notes that a frame is a page table again, after a time as something else.
    ///
    /// In between the host may have written to it without a note here (a device's data, a cleared page), and the
    /// entries that it holds as it becomes a table are not noted one by one: what an engine remembers of this
    /// frame as a table from before must go.
    pub fn reused_table(&mut self, table: Mfn) {
        self.reused.push(table);
    }

    /// Asks every virtual CPU to drop its cached translations.
    pub fn flush_all(&mut self) {
        self.flushes += 1;
    }

    /// Declares everything stale that was ever cached of any page table.
    pub fn invalidate_all(&mut self) {
        self.epoch += 1;
    }

    /// What a reader at `cursor` has not read.
    pub fn since(&self, cursor: &Cursor) -> Unread<'_> {
        let changes = (self.writes.since(cursor.writes), self.reused.since(cursor.reused));
        match changes {
            (Some(writes), Some(reused)) if cursor.epoch == self.epoch => {
                Unread::Changes { writes, reused, flush: cursor.flushes != self.flushes }
            }
            _ => Unread::Stale,
        }
    }

    /// The place past everything that is in the log.
    pub fn end(&self) -> Cursor {
        let (writes, reused) = (self.writes.end, self.reused.end);
        Cursor { writes, reused, epoch: self.epoch, flushes: self.flushes }
    }
}

/// The last items of a sequence.
#[derive(Debug)]
struct Ring<T> {
    items: Vec<T>,
    capacity: usize,
    /// How many were ever pushed.
    end: u64,
}

impl<T> Ring<T> {
    fn new(capacity: usize) -> Self {
        Self { items: Vec::with_capacity(capacity), capacity, end: 0 }
    }

    fn push(&mut self, item: T) {
        let place = self.place(self.end);
        match self.items.get_mut(place) {
            Some(oldest) => *oldest = item,
            // Within the capacity: this does not allocate.
            None => self.items.push(item),
        }
        self.end += 1;
    }

    /// Those from number `from` on; `None` if some of them are gone.
    fn since(&self, from: u64) -> Option<Since<'_, T>> {
        let count = usize::try_from(self.end.checked_sub(from)?).ok().filter(|n| *n <= self.capacity)?;
        let first = self.place(from);
        let whole = self.items.len();
        let to_the_top = count.min(whole.saturating_sub(first));
        let top = self.items.get(first..first + to_the_top).unwrap_or_default();
        let bottom = self.items.get(..count - to_the_top).unwrap_or_default();
        Some(Since { older: top, newer: bottom })
    }

    fn place(&self, number: u64) -> usize {
        // Less than the capacity, which is a usize.
        (number % self.capacity as u64) as usize
    }
}

/// Items of the log in order, which may be in two pieces.
#[derive(Debug)]
pub struct Since<'a, T> {
    older: &'a [T],
    newer: &'a [T],
}

impl<T> Clone for Since<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Since<'_, T> {}

impl<'a, T> Since<'a, T> {
    /// No items.
    pub const fn none() -> Self {
        Self { older: &[], newer: &[] }
    }
    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a T> + Clone + use<'a, T> {
        self.older.iter().chain(self.newer)
    }
    /// The item `index` after the first.
    pub fn get(&self, index: usize) -> Option<&'a T> {
        self.older.get(index).or_else(|| self.newer.get(index.checked_sub(self.older.len())?))
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.older.is_empty() && self.newer.is_empty()
    }
}

#[cfg(test)]
mod tests;
