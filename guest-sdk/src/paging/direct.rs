//! Extends the direct map to all of the domain's memory.
//!
//! A domain builder maps what it loaded and at least half a MiB more; the kernel maps the rest.

use core::ops::Range;

use paravane_abi::addr::{PT_ENTRIES, is_canonical, is_hypervisor, table_index};
use paravane_abi::pte;

use super::error::PagingError;
use super::flags::PageFlags;
use super::frames::FrameSource;
use super::mmu::Mmu;
use crate::hypercall::Hypercalls;
use crate::memory::Pfn;

impl<H: Hypercalls> Mmu<'_, H> {
    /// The first frame from `from` on that is not in the direct map.
    pub fn direct_map_end(&self, from: Pfn) -> Pfn {
        let mut pfn = from.0;
        while pfn < self.memory.frames() {
            let Some((table, index)) = self.leaf(self.kernel_root, self.memory.va(Pfn(pfn))) else { break };
            let Some(gap) = (index..PT_ENTRIES).position(|i| !pte::is_present(self.read(table, i))) else {
                pfn += (PT_ENTRIES - index) as u64;
                continue;
            };
            pfn += gap as u64;
            break;
        }
        Pfn(pfn.min(self.memory.frames()))
    }

    /// Maps the frames of `range`, none of which is mapped yet, into the direct map. New tables are filled before
    /// they are linked, so this takes about one transition per GiB.
    ///
    /// # Errors
    /// When frames for tables run out (one for each 2 MiB), or the direct map would run into the hypervisor's
    /// range or the end of the address space.
    pub fn extend_direct_map(
        &mut self,
        frames: &mut impl FrameSource,
        range: Range<Pfn>,
    ) -> Result<(), PagingError> {
        let space = self.kernel_space();
        let mut pfn = range.start.0;
        while pfn < range.end.0 {
            let va = self.memory.va(Pfn(pfn));
            if va < self.memory.virt_base() || !is_canonical(va) || is_hypervisor(va) {
                return Err(PagingError::BadAddress(va));
            }
            let table = space.table(self, frames, va)?;
            for index in table_index(va, 1)..PT_ENTRIES.min(table_index(va, 1) + (range.end.0 - pfn) as usize)
            {
                // There is code in the image, but not in the frames mapped here: no execution.
                let entry = PageFlags::DATA.entry(self.mfn(Pfn(pfn))?);
                // SAFETY: an L1 table, and an address where nothing is mapped.
                unsafe { self.write(table, index, entry) }?;
                pfn += 1;
            }
        }
        self.flush()
    }
}
