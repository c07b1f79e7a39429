//! Address spaces of programs, and copies in and out of them.
#![forbid(unsafe_code)]

use core::fmt;

use paravane_abi::addr::{PAGE_OFFSET_MASK, PAGE_SIZE};

use super::mode::UserMode;
use crate::hypercall::Hypercalls;
use crate::memory::{Mfn, Pfn};
use crate::paging::{AddressSpace, FrameSource, Mmu, PageFlags, PagingError};

/// The end of the addresses that a program may have: the lower half.
const USER_END: u64 = 1 << 47;

/// A program's address space: what was mapped in it, and nothing of the kernel.
///
/// Changes take effect with the next [`Mmu::flush`], which [`UserMode::run`] does first.
#[derive(Debug, PartialEq, Eq)]
pub struct UserSpace(AddressSpace);

/// A pointer of a program leads to where it may not read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress(pub u64);

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the program has no such access at {:#x}", self.0)
    }
}

impl core::error::Error for BadAddress {}

impl UserSpace {
    /// An empty space. The hypervisor validates its tables with the next flush; mapping pages before that costs plain
    /// stores.
    ///
    /// # Errors
    /// When frames run out, or an update queued before was refused.
    pub fn new<H: Hypercalls>(
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
    ) -> Result<Self, PagingError> {
        AddressSpace::without_kernel(mmu, frames).map(Self)
    }

    /// The frame of its L4 table.
    pub const fn root(&self) -> Pfn {
        self.0.root()
    }

    /// Maps the page at `va` to a frame, whose contents the program can then read.
    ///
    /// # Errors
    /// When something is mapped there, the address is not one of the lower half, or frames for tables run out.
    pub fn map<H: Hypercalls>(
        &self,
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
        va: u64,
        frame: Pfn,
        flags: PageFlags,
    ) -> Result<(), PagingError> {
        if va >= USER_END {
            return Err(PagingError::BadAddress(va));
        }
        self.0.map(mmu, frames, va, frame, flags | PageFlags::USER)
    }

    /// Maps the page at `va` to a new frame of zeroes, which belongs to the space until it is unmapped.
    ///
    /// # Errors
    /// As for [`UserSpace::map`].
    pub fn map_new<H: Hypercalls>(
        &self,
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
        va: u64,
        flags: PageFlags,
    ) -> Result<Pfn, PagingError> {
        let frame = frames.take().ok_or(PagingError::OutOfFrames)?;
        mmu.memory().zero(frame);
        self.map(mmu, frames, va, frame, flags).inspect_err(|_| frames.give(frame))?;
        Ok(frame)
    }

    /// Changes the accesses that a mapped page permits.
    ///
    /// # Errors
    /// When no page is mapped there.
    pub fn protect<H: Hypercalls>(
        &self,
        mmu: &mut Mmu<'_, H>,
        va: u64,
        flags: PageFlags,
    ) -> Result<(), PagingError> {
        self.0.protect(mmu, va, flags | PageFlags::USER)
    }

    /// Unmaps a page and returns its machine frame, which may be used otherwise once the queue is flushed.
    ///
    /// # Errors
    /// When no page is mapped there.
    pub fn unmap<H: Hypercalls>(&self, mmu: &mut Mmu<'_, H>, va: u64) -> Result<Mfn, PagingError> {
        self.0.unmap(mmu, va)
    }

    /// The frame that a page is mapped to, and the accesses that it permits. `None`, too, for addresses that no
    /// program has.
    pub fn translate<H: Hypercalls>(&self, mmu: &Mmu<'_, H>, va: u64) -> Option<(Mfn, PageFlags)> {
        (va < USER_END).then(|| self.0.translate(mmu, va)).flatten()
    }

    /// Frees the tables, and with `pages` the frames that are mapped: one transition for most spaces.
    ///
    /// # Errors
    /// When the hypervisor refuses; the frames are lost then, because their state is unknown.
    pub fn destroy<H: Hypercalls>(
        self,
        user: &mut UserMode,
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
        pages: bool,
    ) -> Result<(), PagingError> {
        user.forget()?;
        self.free(mmu, frames, pages)
    }

    pub(super) fn free<H: Hypercalls>(
        self,
        mmu: &mut Mmu<'_, H>,
        frames: &mut impl FrameSource,
        pages: bool,
    ) -> Result<(), PagingError> {
        self.0.destroy_without_kernel(mmu, frames, pages)
    }

    /// Copies from the program's memory. Neither a wild pointer nor one to an address of the kernel can make the
    /// kernel fault, or read anything but what the program may read: the address is looked up in the program's tables.
    ///
    /// # Errors
    /// The first address that the program has no page at; what was before it is copied.
    pub fn copy_from_user<H: Hypercalls>(
        &self,
        mmu: &Mmu<'_, H>,
        va: u64,
        into: &mut [u8],
    ) -> Result<(), BadAddress> {
        let memory = mmu.memory();
        self.each_page(mmu, va, into.len(), PageFlags::empty(), |frame, offset, done, count| {
            memory.copy_out(frame, offset, &mut into[done..done + count]);
        })
    }

    /// Copies to the program's memory, as [`UserSpace::copy_from_user`] from it.
    ///
    /// # Errors
    /// The first address at which the program may not write; what was before it is copied.
    pub fn copy_to_user<H: Hypercalls>(
        &self,
        mmu: &Mmu<'_, H>,
        va: u64,
        from: &[u8],
    ) -> Result<(), BadAddress> {
        let memory = mmu.memory();
        self.each_page(mmu, va, from.len(), PageFlags::WRITE, |frame, offset, done, count| {
            memory.copy_in(frame, offset, &from[done..done + count]);
        })
    }

    /// Calls `f` with the frame, the offset in it, the bytes before it and the bytes in it, for each page of a range.
    fn each_page<H: Hypercalls>(
        &self,
        mmu: &Mmu<'_, H>,
        va: u64,
        len: usize,
        needed: PageFlags,
        mut f: impl FnMut(Pfn, usize, usize, usize),
    ) -> Result<(), BadAddress> {
        let mut done = 0;
        while done < len {
            let at = va.checked_add(done as u64).ok_or(BadAddress(va))?;
            let offset = (at & PAGE_OFFSET_MASK) as usize;
            let count = (len - done).min(PAGE_SIZE as usize - offset);
            let page = self.translate(mmu, at).filter(|(_, flags)| flags.contains(needed));
            let frame = page.and_then(|(mfn, _)| mmu.memory().pfn(mfn)).ok_or(BadAddress(at))?;
            f(frame, offset, done, count);
            done += count;
        }
        Ok(())
    }
}
