//! TLB invalidations that are due at the end of a flush.
#![forbid(unsafe_code)]

use paravane_abi::mmu::{MMUEXT_INVLPG_LOCAL, MMUEXT_TLB_FLUSH_LOCAL, MmuextOp};

/// The most pages that are invalidated one by one; for more, everything is flushed.
const PAGES: usize = 8;

/// Nothing, a few pages, or everything.
#[derive(Debug)]
pub(super) struct Tlb {
    pages: [u64; PAGES],
    count: usize,
    all: bool,
}

impl Tlb {
    /// The most operations that [`take`](Self::take) returns in a flush.
    pub(super) const MAX_OPS: usize = PAGES;

    pub(super) const fn new() -> Self {
        Self { pages: [0; PAGES], count: 0, all: false }
    }

    pub(super) fn page(&mut self, va: u64) {
        if self.all || self.pages[..self.count].contains(&va) {
            return;
        }
        match self.pages.get_mut(self.count) {
            Some(slot) => {
                *slot = va;
                self.count += 1;
            }
            None => self.all(),
        }
    }

    pub(super) fn all(&mut self) {
        self.all = true;
        self.count = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0 && !self.all
    }

    /// Takes the next operation that is due.
    pub(super) fn take(&mut self) -> Option<MmuextOp> {
        if self.all {
            self.all = false;
            return Some(MmuextOp { cmd: MMUEXT_TLB_FLUSH_LOCAL, ..MmuextOp::default() });
        }
        self.count = self.count.checked_sub(1)?;
        Some(MmuextOp { cmd: MMUEXT_INVLPG_LOCAL, arg1: self.pages[self.count], ..MmuextOp::default() })
    }
}
