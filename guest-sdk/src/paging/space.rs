//! Address spaces.

use paravane_abi::addr::{
    PAGE_OFFSET_MASK, PT_ENTRIES, RESERVED_L4_FIRST, RESERVED_L4_LAST, is_canonical, is_hypervisor,
    table_index,
};
use paravane_abi::pte;

use super::error::PagingError;
use super::flags::PageFlags;
use super::frames::FrameSource;
use super::mmu::{Mmu, TABLE};
use crate::hypercall::Hypercalls;
use crate::memory::{Memory, Mfn, Pfn};
use crate::queue::FlushReason;

/// A tree of page tables.
///
/// All spaces share the kernel's part: everything that was mapped in the kernel's space when they were made. The
/// functions here cannot change the direct map in it, which makes them safe: compiled code accesses the memory that
/// they map, protect and unmap through raw pointers only. Changes take effect with the next [`Mmu::flush`], many of
/// them in one transition.
#[derive(Debug, PartialEq, Eq)]
pub struct AddressSpace {
    root: Pfn,
    /// Whether it has the kernel's part, without which nothing in it is the kernel's.
    has_kernel: bool,
}

impl AddressSpace {
    const fn existing(root: Pfn) -> Self {
        Self { root, has_kernel: true }
    }

    /// The frame of its L4 table.
    pub const fn root(&self) -> Pfn {
        self.root
    }

    /// A new space with the kernel's part of `kernel`. The hypervisor validates its tables with the next flush;
    /// mapping pages before that costs plain stores.
    ///
    /// # Errors
    /// When frames run out, or an update queued before was refused.
    pub fn new<H: Hypercalls>(
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
        kernel: &Self,
    ) -> Result<Self, PagingError> {
        mmu.reserve(2)?;
        let root = frames.take().ok_or(PagingError::OutOfFrames)?;
        let Some(third) = frames.take() else {
            frames.give(root);
            return Err(PagingError::OutOfFrames);
        };
        let own = table_index(mmu.memory.virt_base(), 4);
        copy_table(mmu, Some(kernel.root), root, |slot| slot != own && !is_hypervisor_slot(slot))?;
        copy_table(mmu, mmu.next(mmu.read(kernel.root, own)), third, |_| true)?;
        // SAFETY: a table that was made here and is not in use yet.
        unsafe { mmu.write(root, own, pte::make(mmu.mfn(third)?.0, TABLE)) }?;
        // SAFETY: `adopt` has queued the removal of write access to both, before this.
        unsafe { mmu.pin(root, 4) }?;
        Ok(Self { root, has_kernel: true })
    }

    /// A new, empty space without the kernel's part: for user mode only.
    pub(crate) fn without_kernel<H: Hypercalls>(
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
    ) -> Result<Self, PagingError> {
        mmu.reserve(1)?;
        let root = frames.take().ok_or(PagingError::OutOfFrames)?;
        mmu.adopt(root)?;
        // SAFETY: `adopt` has queued the removal of write access, before this.
        unsafe { mmu.pin(root, 4) }?;
        Ok(Self { root, has_kernel: false })
    }

    /// Maps the page at `va` to a frame of the domain, making tables as needed.
    ///
    /// # Errors
    /// When something is mapped there, the address or the frame is not valid, or frames for tables run out.
    pub fn map<H: Hypercalls>(
        &self,
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
        va: u64,
        frame: Pfn,
        flags: PageFlags,
    ) -> Result<(), PagingError> {
        self.map_all(mmu, frames, [(va, frame)], flags)
    }

    /// Maps many pages with the same flags. Neighbouring pages share the search for their table.
    ///
    /// # Errors
    /// As for [`AddressSpace::map`]; the pages before the one at fault are mapped.
    pub fn map_all<H: Hypercalls>(
        &self,
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
        pages: impl IntoIterator<Item = (u64, Pfn)>,
        flags: PageFlags,
    ) -> Result<(), PagingError> {
        let mut last = None;
        for (va, frame) in pages {
            self.check(&mmu.memory(), va)?;
            let entry = flags.entry(mmu.mfn(frame)?);
            let table = match last {
                Some((span, table)) if span == va >> 21 => table,
                _ => self.table(mmu, frames, va)?,
            };
            last = Some((va >> 21, table));
            let index = table_index(va, 1);
            if pte::is_present(mmu.read(table, index)) {
                return Err(PagingError::Mapped(va));
            }
            // SAFETY: an L1 table, and an address on which nothing relies (see the type).
            unsafe { mmu.write(table, index, entry) }?;
        }
        Ok(())
    }

    /// Changes the accesses that a mapped page permits.
    ///
    /// # Errors
    /// When no page is mapped there, or the address is not valid.
    pub fn protect<H: Hypercalls>(
        &self,
        mmu: &mut Mmu<'_, H>,
        va: u64,
        flags: PageFlags,
    ) -> Result<(), PagingError> {
        let (table, index, old) = self.mapped(mmu, va)?;
        // SAFETY: as in `map_all`.
        unsafe { mmu.write_preserving(table, index, flags.entry(Mfn(pte::mfn(old)))) }?;
        mmu.queue().invalidate(va);
        Ok(())
    }

    /// Unmaps a page and returns its machine frame, which may be used otherwise once the queue is flushed.
    ///
    /// # Errors
    /// As for [`AddressSpace::protect`].
    pub fn unmap<H: Hypercalls>(&self, mmu: &mut Mmu<'_, H>, va: u64) -> Result<Mfn, PagingError> {
        let (table, index, old) = self.mapped(mmu, va)?;
        // SAFETY: as in `map_all`.
        unsafe { mmu.write(table, index, 0) }?;
        mmu.queue().invalidate(va);
        Ok(Mfn(pte::mfn(old)))
    }

    /// The frame that a page is mapped to, and the accesses that it permits.
    pub fn translate<H: Hypercalls>(&self, mmu: &Mmu<'_, H>, va: u64) -> Option<(Mfn, PageFlags)> {
        let (table, index) = mmu.leaf(self.root, va)?;
        let entry = mmu.read(table, index);
        pte::is_present(entry).then(|| (Mfn(pte::mfn(entry)), PageFlags::of(entry)))
    }

    /// Makes all queued changes and switches the vCPU to this space: one transition.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    pub fn switch<H: Hypercalls>(&self, mmu: &mut Mmu<'_, H>) -> Result<(), PagingError> {
        // SAFETY: every space has the kernel's part.
        unsafe { mmu.switch(self.root) }
    }

    /// Frees the tables of a space that no vCPU uses, except those that it shares with `kernel`: one transition. The
    /// frames that it maps are not freed.
    ///
    /// # Errors
    /// When the hypervisor refuses; the frames are lost then, because their state is unknown.
    pub fn destroy<H: Hypercalls>(
        self,
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
        kernel: &Self,
    ) -> Result<(), PagingError> {
        self.free(mmu, Some(kernel.root), &mut |_, table, _| {
            frames.give(table);
            Ok(())
        })
    }

    /// As [`destroy`](Self::destroy), for a space without the kernel's part; with `pages`, the frames that it maps are
    /// freed, too.
    pub(crate) fn destroy_without_kernel<H: Hypercalls>(
        self,
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
        pages: bool,
    ) -> Result<(), PagingError> {
        self.free(mmu, None, &mut |mmu, table, level| {
            if pages && level == 1 {
                for entry in
                    (0..PT_ENTRIES).map(|index| mmu.memory.load(table, index)).filter(|e| pte::is_present(*e))
                {
                    mmu.memory.pfn(Mfn(pte::mfn(entry))).into_iter().for_each(|page| frames.give(page));
                }
            }
            frames.give(table);
            Ok(())
        })
    }

    /// Gives the tables that `kernel` does not share to `give`, lower ones first, once they are ordinary frames.
    fn free<'q, H: Hypercalls>(
        self,
        mmu: &mut Mmu<'q, H>,
        kernel: Option<Pfn>,
        give: &mut impl FnMut(&mut Mmu<'q, H>, Pfn, u8) -> Result<(), PagingError>,
    ) -> Result<(), PagingError> {
        // The tables of a new space may still be loose; the hypervisor must know them before they are freed.
        mmu.queue().flush_for(FlushReason::Order)?;
        // SAFETY: the caller's promise.
        unsafe { mmu.unpin(self.root) }?;
        each_own(mmu, 4, self.root, kernel, &mut |mmu, table, _| {
            // SAFETY: unpinned and unused, it is no longer a table.
            unsafe { mmu.make_writable(table) }
        })?;
        mmu.queue().flush_for(FlushReason::Order)?;
        each_own(mmu, 4, self.root, kernel, give)
    }

    /// The entry that maps `va`, which must be present.
    fn mapped<H: Hypercalls>(&self, mmu: &Mmu<'_, H>, va: u64) -> Result<(Pfn, usize, u64), PagingError> {
        self.check(&mmu.memory(), va)?;
        let (table, index) = mmu.leaf(self.root, va).ok_or(PagingError::NotMapped(va))?;
        let entry = mmu.read(table, index);
        if pte::is_present(entry) { Ok((table, index, entry)) } else { Err(PagingError::NotMapped(va)) }
    }

    /// Checks that the functions here may map something at `va`.
    fn check(&self, memory: &Memory, va: u64) -> Result<(), PagingError> {
        if !is_canonical(va) || is_hypervisor(va) || va & PAGE_OFFSET_MASK != 0 {
            return Err(PagingError::BadAddress(va));
        }
        match memory.pfn_at(va) {
            Some(_) if self.has_kernel => Err(PagingError::DirectMap(va)),
            _ => Ok(()),
        }
    }

    /// The L1 table for `va`; it and those above it are made if they are missing.
    pub(super) fn table<H: Hypercalls>(
        &self,
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
        va: u64,
    ) -> Result<Pfn, PagingError> {
        let mut table = self.root;
        for level in [4, 3, 2] {
            let index = table_index(va, level);
            let entry = mmu.read(table, index);
            table = if pte::is_present(entry) {
                mmu.next(entry).ok_or(PagingError::Mapped(va))?
            } else {
                link_new_table(mmu, frames, table, index)?
            };
        }
        Ok(table)
    }
}

impl<H: Hypercalls> Mmu<'_, H> {
    /// The address space that the kernel was started in.
    pub fn kernel_space(&self) -> AddressSpace {
        AddressSpace::existing(self.kernel_root)
    }
}

const fn is_hypervisor_slot(slot: usize) -> bool {
    slot >= RESERVED_L4_FIRST && slot <= RESERVED_L4_LAST
}

/// Makes `new` a table with those entries of `old` for which `wanted` holds.
fn copy_table<H: Hypercalls>(
    mmu: &mut Mmu<'_, H>,
    old: Option<Pfn>,
    new: Pfn,
    wanted: impl Fn(usize) -> bool,
) -> Result<(), PagingError> {
    mmu.adopt(new)?;
    let Some(old) = old else { return Ok(()) };
    for index in (0..PT_ENTRIES).filter(|index| wanted(*index)) {
        let entry = mmu.read(old, index);
        // SAFETY: a table that was made here and is not in use yet.
        unsafe { mmu.write(new, index, entry) }?;
    }
    Ok(())
}

fn link_new_table<H: Hypercalls>(
    mmu: &mut Mmu<'_, H>,
    frames: &mut impl FrameSource,
    parent: Pfn,
    index: usize,
) -> Result<Pfn, PagingError> {
    mmu.reserve(1)?;
    let table = frames.take().ok_or(PagingError::OutOfFrames)?;
    mmu.adopt(table)?;
    let entry = pte::make(mmu.mfn(table)?.0, TABLE);
    // SAFETY: an empty table under an empty entry changes no translation.
    unsafe { mmu.write(parent, index, entry) }?;
    Ok(table)
}

/// Calls `f` for every table that `kernel` does not share, with its level, lower tables first.
fn each_own<'q, H: Hypercalls>(
    mmu: &mut Mmu<'q, H>,
    level: u8,
    table: Pfn,
    kernel: Option<Pfn>,
    f: &mut impl FnMut(&mut Mmu<'q, H>, Pfn, u8) -> Result<(), PagingError>,
) -> Result<(), PagingError> {
    if level > 1 {
        for index in (0..PT_ENTRIES).filter(|index| level < 4 || !is_hypervisor_slot(*index)) {
            let entry = mmu.memory.load(table, index);
            let theirs = kernel.map_or(0, |kernel| mmu.memory.load(kernel, index));
            let shared = pte::is_present(theirs) && pte::mfn(theirs) == pte::mfn(entry);
            if let Some(child) = mmu.next(entry).filter(|_| !shared) {
                each_own(mmu, level - 1, child, mmu.next(theirs), f)?;
            }
        }
    }
    f(mmu, table, level)
}
