//! The software TLB: translations of pages by kind of access, direct-mapped.
//!
//! An entry exists only for an access that the guest's tables allow and whose accessed and dirty bits have been set. No
//! page that holds decoded code has an entry for stores: those take the slow path, which drops what was decoded.

use crate::machine::memory::{Maddr, PAGE_SIZE};

/// Entries of each kind.
const ENTRIES: usize = 512;
/// The low bits of a tag: which address space, counted, and whether it is seen by CPL 3.
const SPACES: u64 = 1 << 11;

/// Which accesses an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

#[derive(Clone, Copy)]
struct Entry {
    /// The page's linear address, and in the low bits the space.
    tag: u64,
    /// What to add (wrapping) to a linear address to get the machine address.
    delta: u64,
}

/// Never equal to a tag: there is no space of that number.
const EMPTY: Entry = Entry { tag: u64::MAX, delta: 0 };

/// Translations of data accesses.
pub(super) struct Tlb {
    read: Box<[Entry; ENTRIES]>,
    write: Box<[Entry; ENTRIES]>,
    space: u64,
    /// The linear addresses of large pages that have entries lie in this range.
    large: std::ops::Range<u64>,
}

impl Tlb {
    pub fn new() -> Self {
        let empty = || Box::new([EMPTY; ENTRIES]);
        Self { read: empty(), write: empty(), space: 0, large: 0..0 }
    }

    const fn index(va: u64) -> usize {
        (va / PAGE_SIZE) as usize % ENTRIES
    }

    #[inline(always)]
    fn tag(&self, va: u64, user: bool) -> u64 {
        va & !(PAGE_SIZE - 1) | self.space << 1 | user as u64
    }

    /// The machine address of `size` bytes at `va`, if an entry covers all of them.
    #[inline(always)]
    pub fn find(&self, kind: Kind, va: u64, size: u64, user: bool) -> Option<Maddr> {
        let entries = match kind {
            Kind::Read => &self.read,
            Kind::Write => &self.write,
        };
        let entry = &entries[Self::index(va)];
        // The last byte's page: an access that crosses into the next one finds the entry of another page.
        let tag = self.tag(va.wrapping_add(size - 1), user);
        if entry.tag == tag { Some(Maddr(va.wrapping_add(entry.delta))) } else { None }
    }

    /// Enters a translation: `va` is at `at`. `large` says that the guest's page is larger than 4 KiB.
    pub fn enter(&mut self, kind: Kind, va: u64, at: Maddr, user: bool, large: Option<u64>) {
        let entry = Entry { tag: self.tag(va, user), delta: at.0.wrapping_sub(va) };
        let entries = match kind {
            Kind::Read => &mut self.read,
            Kind::Write => &mut self.write,
        };
        entries[Self::index(va)] = entry;
        if let Some(size) = large {
            let start = va & !(size - 1);
            let end = start.saturating_add(size);
            self.large = if self.large.is_empty() {
                start..end
            } else {
                self.large.start.min(start)..self.large.end.max(end)
            };
        }
    }

    /// Drops all entries.
    pub fn flush(&mut self) {
        self.large = 0..0;
        self.space += 1;
        if self.space >= SPACES - 1 {
            self.space = 0;
            (*self.read, *self.write) = ([EMPTY; ENTRIES], [EMPTY; ENTRIES]);
        }
    }

    /// Drops the entries of one page, or all where it may be part of a large one.
    pub fn flush_page(&mut self, va: u64) {
        if self.large.contains(&va) {
            return self.flush();
        }
        (self.read[Self::index(va)], self.write[Self::index(va)]) = (EMPTY, EMPTY);
    }

    /// Drops all entries for stores.
    pub fn flush_writes(&mut self) {
        *self.write = [EMPTY; ENTRIES];
    }
}

/// Entries of [`Fetches`].
const FETCHES: usize = 64;

/// Where code is: which chunk of decoded code belongs to a linear page.
pub(super) struct Fetches([(u64, u32); FETCHES]);

impl Default for Fetches {
    fn default() -> Self {
        Self([(u64::MAX, 0); FETCHES])
    }
}

impl Fetches {
    const fn tag(va: u64, user: bool) -> u64 {
        va & !(PAGE_SIZE - 1) | user as u64
    }

    /// The chunk of the page of `va`.
    #[inline]
    pub fn find(&self, va: u64, user: bool) -> Option<u32> {
        let (tag, chunk) = self.0[(va / PAGE_SIZE) as usize % FETCHES];
        if tag == Self::tag(va, user) { Some(chunk) } else { None }
    }

    /// Enters it.
    pub fn enter(&mut self, va: u64, user: bool, chunk: u32) {
        self.0[(va / PAGE_SIZE) as usize % FETCHES] = (Self::tag(va, user), chunk);
    }

    /// Drops all entries.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_for_one_page_kind_level_and_space() {
        let mut tlb = Tlb::new();
        tlb.enter(Kind::Read, 0x5123, Maddr(0x9123), false, None);
        let find = |tlb: &Tlb, va, size| tlb.find(Kind::Read, va, size, false);
        assert_eq!(find(&tlb, 0x5000, 8), Some(Maddr(0x9000)));
        assert_eq!(find(&tlb, 0x5ff8, 8), Some(Maddr(0x9ff8)));
        assert_eq!(find(&tlb, 0x5ff9, 8), None, "crosses into the next page");
        assert_eq!(find(&tlb, 0x5000 + (ENTRIES as u64) * PAGE_SIZE, 1), None);
        assert_eq!(tlb.find(Kind::Write, 0x5000, 1, false), None);
        assert_eq!(tlb.find(Kind::Read, 0x5000, 1, true), None);
        tlb.flush_page(0x5fff);
        assert_eq!(find(&tlb, 0x5000, 8), None);
        tlb.enter(Kind::Read, 0x5000, Maddr(0x9000), false, None);
        tlb.flush();
        assert_eq!(find(&tlb, 0x5000, 8), None);
    }

    #[test]
    fn spaces_are_never_mistaken_for_one_another() {
        let mut tlb = Tlb::new();
        tlb.enter(Kind::Read, 0, Maddr(0x1000), false, None);
        for _ in 0..3 * SPACES {
            tlb.flush();
            assert_eq!(tlb.find(Kind::Read, 0, 1, false), None);
        }
    }

    /// INVLPG of any address in a large page drops all of it.
    #[test]
    fn a_large_page_goes_as_a_whole() {
        let mut tlb = Tlb::new();
        tlb.enter(Kind::Read, 0x20_5000, Maddr(0x5000), false, Some(1 << 21));
        tlb.flush_page(0x3f_f000);
        assert_eq!(tlb.find(Kind::Read, 0x20_5000, 1, false), None);
    }
}
