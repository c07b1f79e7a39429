//! A domain's log of page-table writes, which all of its virtual CPUs read.
//!
//! Code that changes a page-table entry stores it in machine memory and then notes it here. Each virtual CPU has a
//! [`Cursor`] into the log, and reads from there to the end before it enters the guest. So an engine that caches
//! translations (a shadow-paging KVM, a process with a mirror of the mappings) learns of every change once.
//!
//! Capacity is fixed when the log is made: nothing here allocates later, and no guest can make it grow. A reader that
//! falls further behind learns that everything it has cached is stale.
//!
//! With several virtual CPUs the log also says up to where *all* of them are current ([`TableLog::everyone_knows`]):
//! what a frame was before may still be cached by one of them if it lost that use later ([`TableLog::is_known`]). A
//! single virtual CPU applies everything before it runs again, so that for it everything is known.
//!
//! Code here may not depend on the readers, or on what they do with the log.

use crate::machine::memory::{Maddr, Mfn};

/// One page-table entry that was written, in machine memory already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PteWrite {
    /// Machine address of the entry, 8-byte aligned.
    pub entry: Maddr,
    /// The old value.
    pub old: u64,
    /// The new value.
    pub new: u64,
    /// Level of the table that holds it: 1..=4.
    pub level: u8,
}

/// The log of a domain.
#[derive(Debug)]
pub struct TableLog {
    writes: Ring<PteWrite>,
    reused: Ring<Mfn>,
    /// The number of times that everything was declared stale.
    epoch: u64,
    /// The number of requests to flush every virtual CPU.
    flushes: u64,
    /// Up to where every virtual CPU is current; `None` while there is only one.
    known: Option<Position>,
    /// Up to where one virtual CPU has applied it for all of them.
    applied: Cursor,
    /// What every virtual CPU must know before the one that made the present changes goes on.
    wanted: Position,
}

/// A point in the life of a log: how much had been noted by then. Never 0 once anything was noted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(pub u64);

/// A virtual CPU's position in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    writes: u64,
    reused: u64,
    epoch: u64,
    flushes: u64,
}

/// The part of the log that a virtual CPU has not read yet.
#[derive(Clone, Copy, Debug)]
pub enum Unread<'a> {
    /// Everything that was cached of any page table is stale, and so is every translation.
    Stale,
    /// Single changes.
    Changes {
        /// Entries that were written, in order.
        writes: Since<'a, PteWrite>,
        /// Frames that became page tables again, see [`TableLog::reused_table`].
        reused: Since<'a, Mfn>,
        /// Whether every cached translation must be flushed.
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
            known: None,
            applied: Cursor::default(),
            wanted: Position::default(),
        }
    }
}

impl Cursor {
    /// How much had been noted when the log ended here: each of the four only grows.
    pub const fn position(&self) -> Position {
        Position(self.writes + self.reused + self.epoch + self.flushes)
    }
}

impl TableLog {
    /// The number of entry writes by which a reader may fall behind before everything is stale for it.
    pub const CAPACITY: usize = 4096;
    /// The number of reused tables by which a reader may fall behind before everything is stale for it.
    pub const REUSED_CAPACITY: usize = 256;

    /// Notes that an entry was written. The value is already in machine memory.
    pub fn wrote(&mut self, write: PteWrite) {
        if write.old != write.new {
            self.writes.push(write);
        }
    }

    /// Notes that a frame is a page table again, after a different use.
    ///
    /// In between, the host may have written to it without a note here (a device's data, a cleared page), and its
    /// present entries are not noted one by one. An engine must forget what it knows about this frame as a table.
    pub fn reused_table(&mut self, table: Mfn) {
        self.reused.push(table);
    }

    /// Asks every virtual CPU to drop its cached translations.
    pub fn flush_all(&mut self) {
        self.flushes += 1;
    }

    /// Declares everything stale that was cached of any page table.
    pub fn invalidate_all(&mut self) {
        self.epoch += 1;
    }

    /// From now on several virtual CPUs read the log, all of which are current.
    pub fn share(&mut self) {
        self.known = Some(self.position());
    }

    /// Whether several virtual CPUs read it.
    pub fn is_shared(&self) -> bool {
        self.known.is_some()
    }

    /// How much has been noted.
    pub fn position(&self) -> Position {
        self.end().position()
    }

    /// Whether no virtual CPU can still use what a change before `position` took away.
    pub fn is_known(&self, position: Position) -> bool {
        self.known.is_none_or(|known| position <= known)
    }

    /// Every virtual CPU is current up to `position`: it has nothing cached from before, or will have dropped it before
    /// it runs the guest again.
    pub fn everyone_knows(&mut self, position: Position) {
        if let Some(known) = &mut self.known {
            *known = position.max(*known);
        }
    }

    /// One virtual CPU has applied everything, and with that all others are current too.
    pub fn applied_for_everyone(&mut self) {
        if self.is_shared() {
            self.applied = self.end();
            self.everyone_knows(self.applied.position());
        }
    }

    /// The virtual CPU at work must not go on before every other one is current up to here.
    pub fn want(&mut self, position: Position) {
        self.wanted = self.wanted.max(position);
    }

    /// What was [wanted](Self::want) since this was last asked, unless it is known by now.
    pub fn take_wanted(&mut self) -> Option<Position> {
        let wanted = std::mem::take(&mut self.wanted);
        Some(wanted).filter(|wanted| !self.is_known(*wanted))
    }

    /// The part of the log that a reader at `cursor` has not read, and nobody else has applied for it.
    pub fn since(&self, cursor: &Cursor) -> Unread<'_> {
        let cursor = if self.applied.position() > cursor.position() { &self.applied } else { cursor };
        let changes = (self.writes.since(cursor.writes), self.reused.since(cursor.reused));
        match changes {
            (Some(writes), Some(reused)) if cursor.epoch == self.epoch => {
                Unread::Changes { writes, reused, flush: cursor.flushes != self.flushes }
            }
            _ => Unread::Stale,
        }
    }

    /// The position at the end of the log.
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
    /// The number of items that were ever pushed.
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

    /// The items from number `from` on; `None` if some of them have been overwritten.
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
        // This is less than the capacity, which is a usize.
        (number % self.capacity as u64) as usize
    }
}

/// Items of the log in order, in up to two slices.
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
    /// All items, in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a T> + Clone + use<'a, T> {
        self.older.iter().chain(self.newer)
    }
    /// The item at `index` from the first.
    pub fn get(&self, index: usize) -> Option<&'a T> {
        self.older.get(index).or_else(|| self.newer.get(index.checked_sub(self.older.len())?))
    }
    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.older.is_empty() && self.newer.is_empty()
    }
}

#[cfg(test)]
mod tests;
