//! What becomes of a store that trapped because it is one to a page table.

use super::{Surroundings, Translator};
use crate::machine::memory::PAGE_SIZE;
use crate::mmu::shadow::OverlayPage;
use crate::translate::adapt::Adaptation;
use crate::translate::code::marked_frame;
use crate::x86::walk::Access;

/// How many linear pages after that of a table are looked at: tables that are made together lie together.
const NEIGHBOURS: u64 = 15;

impl Translator {
    /// The store at `rip` trapped, because it is one to a page table, at the address `va`.
    pub fn store_trapped(&mut self, s: &mut Surroundings<'_>, rip: u64, va: u64) {
        let Some(adaptation) = self.adaptation.as_mut().filter(|_| self.placed) else { return };
        if adaptation.trapped(rip, self.cache.next_number()) {
            self.done.adapted += 1;
        }
        if !adaptation.is_adapted(rip) {
            return;
        }
        // The same store may be in blocks that were made before it was known.
        if let Some(block) = self.last.filter(|block| adaptation.is_outdated(rip, *block)) {
            self.last = None;
            self.cache.kill(s.memory, block);
        }
        let access = Access { write: true, user: false, fetch: false };
        let found = s.shadow.lookup(s.memory, va, access).ok().and_then(|found| found.maddr());
        let Some(pfn) = found.and_then(|at| s.memory.mfn_to_pfn(at.mfn())) else { return };
        if !s.shadow.is_table(pfn) {
            return;
        }
        self.set_alias(s, va, pfn);
        for n in 1..=NEIGHBOURS {
            let va = va.wrapping_add(n * PAGE_SIZE);
            let is_free = self.adaptation.as_ref().is_some_and(|adaptation| adaptation.is_free(va));
            if is_free
                && let Some(pfn) = marked_frame(s.memory, s.cpu.cr3, va)
                && s.shadow.is_table(pfn)
                && !s.shadow.is_code(pfn)
            {
                self.set_alias(s, va, pfn);
            }
        }
    }

    /// Has the alias of the linear address `va` lead to the frame `pfn`, where stores to that address go.
    fn set_alias(&mut self, s: &mut Surroundings<'_>, va: u64, pfn: u64) {
        let Some(mfn) = s.memory.pfn_to_mfn(pfn) else { return };
        let Some(adaptation) = &mut self.adaptation else { return };
        adaptation.set(va, pfn);
        let at = self.place.first_alias() + Adaptation::slot(va) * PAGE_SIZE;
        let page = OverlayPage { va: at, mfn, writable: true, executable: false };
        if !s.shadow.overlay().contains(&page) {
            s.shadow.replace_overlay_page(s.memory, s.log, page);
        }
        self.show(s, at, true);
    }
}
