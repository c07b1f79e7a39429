//! TLB invalidations that are due at the end of a flush.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use paravane_abi::mmu::{
    MMUEXT_INVLPG_ALL, MMUEXT_INVLPG_LOCAL, MMUEXT_TLB_FLUSH_ALL, MMUEXT_TLB_FLUSH_LOCAL, MmuextOp,
};

use crate::smp::SEVERAL;

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
        let several = SEVERAL.load(Ordering::Relaxed) != 0;
        if self.all {
            self.all = false;
            let cmd = if several { MMUEXT_TLB_FLUSH_ALL } else { MMUEXT_TLB_FLUSH_LOCAL };
            return Some(MmuextOp { cmd, ..MmuextOp::default() });
        }
        self.count = self.count.checked_sub(1)?;
        let cmd = if several { MMUEXT_INVLPG_ALL } else { MMUEXT_INVLPG_LOCAL };
        Some(MmuextOp { cmd, arg1: self.pages[self.count], ..MmuextOp::default() })
    }
}
