//! The batch: mapping calls that the mapper of a guest process makes before the guest is entered.
//!
//! Written straight to the process's board as steps of the interpreter; neighbours are merged as they come.
//! A batch that overflows becomes one call that unmaps everything, for the mirror is only a cache.

use super::super::area::{Area, BOARD_SIZE, GUEST_END, Lane, STEP, board};
use super::super::filter::MEMORY_FD;
use super::super::stub::{self, Place, STEP_JUMP};
use crate::machine::memory::PAGE_SIZE;

/// How many calls fit, the last jump not counted.
const CAPACITY: u64 = (BOARD_SIZE - board::STEPS) / STEP - 1;
/// How many pages around a fault are faulted in with it, as Linux does for files.
const AROUND: u64 = 16;

/// The rights of a mapped page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    pub write: bool,
    pub execute: bool,
}

impl Rights {
    fn bits(self) -> u64 {
        let write = if self.write { libc::PROT_WRITE } else { 0 };
        let execute = if self.execute { libc::PROT_EXEC } else { 0 };
        (libc::PROT_READ | write | execute) as u64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Map {
        frame: u64,
        rights: Rights,
    },
    Unmap,
    Protect(Rights),
    /// Fault in what was mapped just before.
    Populate,
}

/// What a process's mapper has to do before its guest runs again.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    calls: u64,
    /// The last call, which the next may extend: its address and length in pages.
    last: Option<(Call, u64, u64)>,
    overflow: bool,
}

impl Batch {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.calls == 0
    }
    /// Whether calls were lost: the owner must start over with [`Batch::unmap_all`].
    pub fn overflowed(&self) -> bool {
        self.overflow
    }
    /// Maps `pages` pages at `va` to the frames from `frame` on.
    ///
    /// Not MAP_POPULATE: for single pages that costs more than the fault of the first touch.
    pub fn map(&mut self, area: &Area, va: u64, pages: u64, frame: u64, rights: Rights) {
        if let Some((Call::Map { frame: f, rights: r }, at, n)) = self.last
            && at + n * PAGE_SIZE == va
            && f + n == frame
            && r == rights
        {
            return self.extend(area, pages);
        }
        self.add(area, Call::Map { frame, rights }, va, pages);
    }
    /// Faults in the pages around `va`, which lie in a mapping of `pages` pages from `start` on.
    pub fn populate_around(&mut self, area: &Area, va: u64, start: u64, pages: u64) {
        let window = AROUND * PAGE_SIZE;
        let from = (va & !(window - 1)).max(start);
        let to = ((va & !(window - 1)) + window).min(start + pages * PAGE_SIZE);
        self.add(area, Call::Populate, from, to.saturating_sub(from) / PAGE_SIZE);
    }
    /// Where the last call ends, if it unmaps.
    pub fn unmapped_to(&self) -> Option<u64> {
        self.last.and_then(|(call, at, n)| (call == Call::Unmap).then_some(at + n * PAGE_SIZE))
    }
    /// Unmaps pages. Nothing is mapped in the `gap` pages before `va`: one call may reach across them, which
    /// costs less than half of two.
    pub fn unmap(&mut self, area: &Area, va: u64, pages: u64, gap: u64) {
        if let Some(between) = self.unmapped_to().and_then(|end| va.checked_sub(end))
            && between <= gap * PAGE_SIZE
        {
            return self.extend(area, between / PAGE_SIZE + pages);
        }
        self.add(area, Call::Unmap, va, pages);
    }
    /// Changes the rights of mapped pages.
    pub fn protect(&mut self, area: &Area, va: u64, pages: u64, rights: Rights) {
        if let Some((Call::Protect(r), at, n)) = self.last
            && at + n * PAGE_SIZE == va
            && r == rights
        {
            return self.extend(area, pages);
        }
        self.add(area, Call::Protect(rights), va, pages);
    }
    /// Forgets every call so far: everything is unmapped instead.
    pub fn unmap_all(&mut self, area: &Area) {
        *self = Self::default();
        self.add(area, Call::Unmap, 0, GUEST_END / PAGE_SIZE);
    }
    /// Ends the batch, ready to be carried out by a lane's mapper, which goes on at `then`; begins a new one.
    pub fn finish(&mut self, area: &Area, lane: Lane, then: Place) {
        let words = [STEP_JUMP, stub::address_in(lane, then)];
        write(area, self.calls, &words);
        *self = Self::default();
    }

    fn add(&mut self, area: &Area, call: Call, va: u64, pages: u64) {
        if self.calls == CAPACITY {
            self.overflow = true;
            return;
        }
        let len = pages * PAGE_SIZE;
        let words = match call {
            Call::Map { frame, rights } => {
                let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
                [libc::SYS_mmap as u64, va, len, rights.bits(), flags, MEMORY_FD, frame * PAGE_SIZE]
            }
            Call::Unmap => [libc::SYS_munmap as u64, va, len, 0, 0, 0, 0],
            Call::Protect(rights) => [libc::SYS_mprotect as u64, va, len, rights.bits(), 0, 0, 0],
            Call::Populate => [libc::SYS_madvise as u64, va, len, libc::MADV_POPULATE_READ as u64, 0, 0, 0],
        };
        write(area, self.calls, &words);
        self.calls += 1;
        self.last = Some((call, va, pages));
    }

    fn extend(&mut self, area: &Area, pages: u64) {
        if let (Some((_, _, n)), Some(index)) = (&mut self.last, self.calls.checked_sub(1)) {
            *n += pages;
            area.set_board(board::STEPS + index * STEP + 16, *n * PAGE_SIZE);
        }
    }
}

fn write(area: &Area, index: u64, words: &[u64]) {
    for (i, word) in (0u64..).zip(words) {
        area.set_board(board::STEPS + index * STEP + i * 8, *word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RW: Rights = Rights { write: true, execute: false };

    #[test]
    fn neighbours_merge() {
        let (area, mut b) = (Area::new().unwrap(), Batch::default());
        b.map(&area, 0x1000, 1, 5, RW);
        b.map(&area, 0x2000, 1, 6, RW);
        assert_eq!((b.calls, b.last.unwrap().2), (1, 2));
        b.map(&area, 0x3000, 1, 9, RW);
        b.unmap(&area, 0x4000, 1, 0);
        b.unmap(&area, 0x5000, 2, 0);
        b.protect(&area, 0x6000, 1, RW);
        b.protect(&area, 0x7000, 1, Rights { write: false, execute: false });
        assert_eq!((b.calls, b.last.unwrap().2), (5, 1));
        b.unmap(&area, 0x9000, 1, 3);
        b.unmap(&area, 0xd000, 1, 3);
        assert_eq!((b.calls, b.last.unwrap()), (6, (Call::Unmap, 0x9000, 5)));
        b.unmap(&area, 0x1_1000, 1, 2);
        assert_eq!((b.calls, b.last.unwrap().2), (7, 1));
    }

    #[test]
    fn overflow_is_told_and_cured() {
        let (area, mut b) = (Area::new().unwrap(), Batch::default());
        for i in 0..CAPACITY + 1 {
            assert!(!b.overflowed());
            b.unmap(&area, i * 2 * PAGE_SIZE, 1, 0);
        }
        assert!(b.overflowed() && b.calls == CAPACITY);
        b.unmap_all(&area);
        assert!(!b.overflowed() && b.calls == 1);
    }
}
