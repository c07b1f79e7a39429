//! Where things are: the kernel's address space, and its memory seen through it.
//!
//! | addresses | what |
//! | --- | --- |
//! | [`VIRT_BASE`].. | all memory, frame by frame: the direct map. The kernel's image is part of it |
//! | [`SCRATCH`].. | pages that workloads and tests map and unmap |
//! | [`PRIVATE`].. | what address spaces other than the kernel's have of their own |

use crate::frames::{Frame, FrameAllocator, PAGE_SIZE};
use crate::machine::{Boot, Current, Machine};
use crate::paging::{Access, AddressSpace, MapError, Mmu, SLOT_SIZE, Span, Stale};
use crate::single::Single;

/// The address of frame 0; `build.rs` links the kernel accordingly.
pub const VIRT_BASE: u64 = 0x4000_0000;
/// The first address of the kernel's scratch pages.
pub const SCRATCH: u64 = 0x10_0000_0000;
/// The first address that is an address space's own.
pub const PRIVATE: u64 = SLOT_SIZE;

/// The most memory that this kernel uses, in frames: 1 GiB.
const MAX_FRAMES: usize = 1 << 18;

static FRAME_MAP: Single<[u64; MAX_FRAMES / 64]> = Single::new([0; MAX_FRAMES / 64]);

/// The address of a frame in the direct map.
pub const fn direct_map(frame: Frame) -> u64 {
    VIRT_BASE + frame.0 * PAGE_SIZE
}

/// Everything about memory that is not the heap.
pub struct Memory {
    /// The machine's page-table primitives.
    pub mmu: <Current as Machine>::Mmu,
    /// Frames that are nobody's.
    pub frames: FrameAllocator<'static>,
    /// The kernel's own address space.
    pub space: AddressSpace,
    /// How many frames the kernel manages, used ones included.
    pub total_frames: u64,
}

impl Memory {
    /// Takes possession of the memory that the kernel was started with, and maps all of it.
    ///
    /// # Errors
    /// When there is too little of it to map the rest.
    ///
    /// # Safety
    /// Called once, while `boot` still describes the machine.
    pub unsafe fn take(boot: &Boot, mmu: <Current as Machine>::Mmu) -> Result<Self, MapError> {
        // SAFETY: called once, so nobody else has the map.
        let map = unsafe { FRAME_MAP.get() };
        let mut memory = Self {
            mmu,
            frames: FrameAllocator::new(map),
            space: AddressSpace::adopt_boot(boot.root),
            total_frames: boot.frames.min(MAX_FRAMES as u64),
        };
        memory.map_all(boot)?;
        Ok(memory)
    }

    /// Extends the direct map over all memory.
    ///
    /// The tables for that must lie in memory that is mapped already. A table maps 512 frames, so using half
    /// of what is free in each step suffices for any amount of memory.
    fn map_all(&mut self, boot: &Boot) -> Result<(), MapError> {
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
