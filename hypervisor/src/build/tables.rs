//! The first page tables: how many, where, and what is in them.
//!
//! A builder maps one run of virtual pages to consecutive frames, and perhaps a second run somewhere below
//! it (the list of frames at INIT_P2M). Each is described by where it begins, so that whole tables are
//! computed and written at once; no table is ever read back. What lies in the frames is the builders' affair.

use std::ops::Range;

use paravane_abi::pte;
use zerocopy::IntoBytes;

use super::guest_frames::{GuestFrames, Words};
use crate::machine::memory::{BadMachineAddress, PAGE_SHIFT};

/// log2 of the entries in a table.
const TABLE_SHIFT: u32 = 9;
/// Pages, and the levels of tables.
const LEVELS: [u32; 5] = [0, 1, 2, 3, 4];
/// Linear addresses have this many bits that a four-level walk looks at.
const WALKED_BITS: u64 = (1 << 48) - 1;

/// A run of virtual pages that are consecutive frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Virtual address of the first page.
    pub va: u64,
    /// How many pages; not 0.
    pub pages: u64,
    /// The first page's PFN.
    pub pfn: u64,
}

/// Consecutive things of one level (pages, or tables) in consecutive frames.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    first: u64,
    count: u64,
    pfn: u64,
}

impl Span {
    /// The indices that both this and `window` hold.
    fn within(&self, window: &Range<u64>) -> Range<u64> {
        self.first.max(window.start)..(self.first + self.count).min(window.end)
    }
    fn pfn_of(&self, index: u64) -> u64 {
        self.pfn + (index - self.first)
    }
}

/// What to write into the entries.
#[derive(Clone, Debug)]
pub(super) struct Style {
    /// What an entry calls the guest's PFN 0: an MFN for machine tables, 0 for pseudo-physical ones.
    pub frame_base: u64,
    /// Added to every present entry.
    pub flags: u64,
    /// PFNs that are mapped read-only.
    pub read_only: Range<u64>,
}

/// The tables of one address space, levels 1 to 4; index 0 holds the pages.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    levels: [[Span; 2]; 5],
}

impl Tables {
    /// The tables for `run`, in frames from `tables` on: L4, then L3s, L2s and L1s.
    pub fn new(run: Run, tables: u64) -> Self {
        let mut levels = [[Span::default(); 2]; 5];
        let mut next = tables;
        for ([span, _], level) in levels.iter_mut().zip(LEVELS).rev() {
            *span = Self::span(run, level);
            if level == 0 {
                span.pfn = run.pfn;
            } else {
                span.pfn = next;
                next += span.count;
            }
        }
        Self { levels }
    }

    /// Adds a second run, all of it below the first, with tables in frames from `tables` on.
    ///
    /// Tables of the first run that reach down that far are shared; returns how many new ones there are.
    pub fn add_below(&mut self, run: Run, tables: u64) -> u64 {
        let mut next = tables;
        for ([upper, lower], level) in self.levels.iter_mut().zip(LEVELS).rev() {
            *lower = Self::span(run, level);
            lower.count = lower.count.min(upper.first.saturating_sub(lower.first));
            if level == 0 {
                lower.pfn = run.pfn;
            } else {
                lower.pfn = next;
                next += lower.count;
            }
        }
        next - tables
    }

    /// How many tables `pages` pages at `va` need.
    pub fn count(va: u64, pages: u64) -> u64 {
        (1..=4).map(|level| Self::span(Run { va, pages, pfn: 0 }, level).count).sum()
    }

    /// The L4 table's PFN.
    pub fn root(&self) -> u64 {
        let [.., [root, _]] = &self.levels;
        root.pfn
    }

    /// Writes all tables.
    pub fn write(&self, guest: GuestFrames<'_>, style: &Style) -> Result<(), BadMachineAddress> {
        // Only leaves are read-only: a table above maps pages that must be written.
        let no_leaf = Style { read_only: 0..0, ..style.clone() };
        let mut style = style;
        for (tables, children) in self.levels.iter().skip(1).zip(&self.levels) {
            for span in tables {
                for index in span.first..span.first + span.count {
                    let entries = entries(index, children, style);
                    guest.write(span.pfn_of(index) << PAGE_SHIFT, entries.as_bytes())?;
                }
            }
            style = &no_leaf;
        }
        Ok(())
    }
    /// Which tables of `level` (pages, for 0) a run touches.
    fn span(run: Run, level: u32) -> Span {
        let shift = PAGE_SHIFT + TABLE_SHIFT * level;
        let first_page = (run.va & WALKED_BITS) >> PAGE_SHIFT;
        let last_page = first_page + run.pages - 1;
        let (first, last) = (first_page >> (shift - PAGE_SHIFT), last_page >> (shift - PAGE_SHIFT));
        Span { first, count: last - first + 1, pfn: 0 }
    }
}

/// What table `index` of the level above `children` holds.
fn entries(index: u64, children: &[Span; 2], style: &Style) -> Words {
    let window = index << TABLE_SHIFT..(index + 1) << TABLE_SHIFT;
    let mut entries: Words = [0; 512];
    for child in children {
        let present = child.within(&window);
        let skipped = present.start.saturating_sub(window.start) as usize;
        for (entry, index) in entries.iter_mut().skip(skipped).zip(present) {
            let pfn = child.pfn_of(index);
            let rw = if style.read_only.contains(&pfn) { 0 } else { pte::RW };
            *entry = pte::make(style.frame_base + pfn, style.flags | rw);
        }
    }
    entries
}
