//! Memory: which frames are free, where they are mapped, and the heap.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`frames`] | the frame allocator |
//! | [`paging`] | page tables and address spaces, over the machine's page-table primitives ([`paging::Mmu`]) |
//! | [`contents`] | what is in frames |
//! | [`shares`] | frames that several programs own |
//! | [`layout`] | which address is for what |
//! | `heap` | the global allocator |
//!
//! Nothing here knows the machine: it is a parameter.

pub mod contents;
pub mod frames;
#[cfg(guest)]
pub mod heap;
pub mod layout;
pub mod paging;
pub mod shares;

use core::ops::Range;

use crate::single::Single;
use frames::{Frame, FrameAllocator};
use paging::{Access, AddressSpace, MapError, Mmu, Span, Stale};
use shares::Shares;

pub use layout::{PRIVATE, SCRATCH, VIRT_BASE, direct_map};

/// The most memory that this kernel uses, in frames: 1 GiB.
const MAX_FRAMES: usize = 1 << 18;

static FRAME_MAP: Single<[u64; MAX_FRAMES / 64]> = Single::new([0; MAX_FRAMES / 64]);

/// The memory that the kernel was started with.
#[derive(Clone, Debug)]
pub struct BootMemory {
    /// How many frames there are, from frame 0 on.
    pub frames: u64,
    /// Frames from this one on are free as far as they are mapped. Below are the kernel and its loader's tables.
    pub first_free: Frame,
    /// An initial RAM disk; empty if there is none.
    pub module: Range<Frame>,
    /// The L4 table in use.
    pub root: Frame,
}

#[cfg(guest)]
impl BootMemory {
    /// The module, up to the end of its last frame.
    ///
    /// # Safety
    /// Nothing writes to its frames.
    pub unsafe fn module_bytes(&self) -> &'static [u8] {
        let Range { start, end } = self.module;
        let len = end.0.saturating_sub(start.0) * frames::PAGE_SIZE;
        // SAFETY: all memory is in the direct map; nothing changes these frames, as the caller promises.
        unsafe { core::slice::from_raw_parts(direct_map(start) as *const u8, len as usize) }
    }
}

/// The memory of a machine whose page tables are changed by `M`; all of it but the heap.
pub struct Memory<M> {
    /// The machine's page-table primitives.
    pub mmu: M,
    /// The frames that are free.
    pub frames: FrameAllocator<'static>,
    /// The kernel's own address space.
    pub space: AddressSpace,
    /// The frames that several programs own.
    pub shares: Shares,
    /// How many frames the kernel manages, used ones included.
    pub total_frames: u64,
}

impl<M: Mmu> Memory<M> {
    /// Takes over the memory that the kernel was started with, and maps all of it.
    ///
    /// # Errors
    /// When there is too little free memory for the page tables that map the rest.
    ///
    /// # Safety
    /// Called once, while `boot` still describes the machine.
    pub unsafe fn take(boot: &BootMemory, mmu: M) -> Result<Self, MapError> {
        // SAFETY: called once, so this is the only reference to the map.
        let map = unsafe { FRAME_MAP.get() };
        let mut memory = Self {
            mmu,
            frames: FrameAllocator::new(map),
            space: AddressSpace::adopt_boot(boot.root),
            shares: Shares::new(),
            total_frames: boot.frames.min(MAX_FRAMES as u64),
        };
        memory.map_all(boot)?;
        Ok(memory)
    }

    /// Extends the direct map over all memory.
    ///
    /// The tables for that must lie in memory that is mapped already. A table maps 512 frames, so using half
    /// of the free frames in each step suffices for any amount of memory.
    fn map_all(&mut self, boot: &BootMemory) -> Result<(), MapError> {
        let mut mapped = boot.first_free.0;
        while mapped < self.total_frames
            && self.space.translate(&self.mmu, direct_map(Frame(mapped))).is_some()
        {
            mapped += 1;
        }
        self.frames.add(boot.first_free..Frame(mapped));
        self.frames.reserve(boot.module.clone());
        while mapped < self.total_frames {
            let count = (self.frames.free_frames() / 2 * 512).min(self.total_frames - mapped);
            if count == 0 {
                return Err(MapError::OutOfFrames);
            }
            let span = Span::pages(direct_map(Frame(mapped)), count);
            let Self { mmu, frames, space, .. } = self;
            space.map_run(mmu, frames, span, Frame(mapped), Access::ReadWrite)?;
            mmu.flush(Stale::Nothing);
            self.frames.add(Frame(mapped)..Frame(mapped + count));
            self.frames.reserve(boot.module.clone());
            mapped += count;
        }
        Ok(())
    }
}
