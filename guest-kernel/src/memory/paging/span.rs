//! Ranges of pages, and how the tables of each level divide them.

use crate::memory::frames::PAGE_SIZE;

/// Entries in a page table.
pub const ENTRIES: usize = 512;

/// A range of pages below the top of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first page's address.
    pub start: u64,
    /// The address past the last page.
    pub end: u64,
}

/// log2 of the bytes that one entry of a table of `level` covers.
const fn shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

/// The index of the entry of a table of `level` on the way to `va`.
pub(super) const fn index(va: u64, level: u8) -> usize {
    (va >> shift(level)) as usize % ENTRIES
}

impl Span {
    /// `pages` pages from `start` on.
    pub const fn pages(start: u64, pages: u64) -> Self {
        Self { start, end: start + pages * PAGE_SIZE }
    }

    /// Divides the range into the parts that single entries of one table of `level` cover, each with the entry's index.
    ///
    /// The range must lie within what one such table covers; at level 4 every range of the lower half does.
    pub fn split(self, level: u8) -> impl Iterator<Item = (usize, Self)> {
        let piece = 1u64 << shift(level);
        debug_assert!(self.start == self.end || (self.end - 1) / piece - self.start / piece < ENTRIES as u64);
        let mut start = self.start;
        core::iter::from_fn(move || {
            if start >= self.end {
                return None;
            }
            let end = ((start / piece + 1) * piece).min(self.end);
            let part = Self { start, end };
            start = end;
            Some((index(part.start, level), part))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_cut_at_table_boundaries() {
        let mib2 = 2 << 20;
        let span = Span::pages(mib2 - 2 * PAGE_SIZE, 516);
        let parts: Vec<_> = span.split(2).collect();
        assert_eq!(
            parts,
            [
                (0, Span::pages(mib2 - 2 * PAGE_SIZE, 2)),
                (1, Span::pages(mib2, 512)),
                (2, Span::pages(2 * mib2, 2)),
            ]
        );
        assert_eq!(span.split(4).collect::<Vec<_>>(), [(0, span)]);
        assert_eq!(Span::pages(0x5000, 0).split(1).count(), 0);
    }

    #[test]
    fn pieces_of_one_page_are_its_entries() {
        let parts: Vec<_> = Span::pages(0x40_0000 - PAGE_SIZE, 1).split(1).collect();
        assert_eq!(parts, [(511, Span::pages(0x40_0000 - PAGE_SIZE, 1))]);
    }
}
