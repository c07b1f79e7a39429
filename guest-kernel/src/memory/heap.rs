//! The heap: a run of frames in the direct map.
//!
//! There is no lock because interrupt handlers never allocate. On a bare machine a lock would cost two
//! privileged instructions for each allocation.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};

use linked_list_allocator::Heap;

use super::frames::{FrameAllocator, PAGE_SIZE};
use super::layout::direct_map;
use crate::single::Single;

/// Frames given to the heap: a sixteenth of those that are free, which a thousand processes need of 128 MiB, within
/// these bounds.
const FRAMES: core::ops::RangeInclusive<u64> = 128..=2048;

struct KernelHeap(Single<Heap>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(Single::new(Heap::empty()));

// SAFETY: the allocator underneath keeps the contract; there is one processor, and interrupt handlers do not allocate.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the reference ends before anything else can run that allocates.
        let heap = unsafe { self.0.get() };
        heap.allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        let heap = unsafe { self.0.get() };
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller hands back what `alloc` returned for this layout.
            unsafe { heap.deallocate(block, layout) }
        }
    }
}

/// Gives the heap its memory; false when there is no run of free frames that is long enough.
///
/// # Safety
/// Called once, before the first allocation, with all free frames mapped.
pub unsafe fn init(frames: &mut FrameAllocator<'_>) -> bool {
    let count = (frames.free_frames() / 16).clamp(*FRAMES.start(), *FRAMES.end());
    let Some(first) = frames.allocate_run(count) else { return false };
    // SAFETY: the frames are mapped and were just allocated for this, and nothing else allocates meanwhile.
    unsafe { HEAP.0.get().init(direct_map(first) as *mut u8, (count * PAGE_SIZE) as usize) }
    true
}

/// Whether that many bytes can be allocated, in one piece.
pub fn has_run(bytes: usize) -> bool {
    let Ok(layout) = Layout::from_size_align(bytes, align_of::<usize>()) else { return false };
    // SAFETY: the block is given back at once, and nothing is in it.
    unsafe {
        let block = HEAP.alloc(layout);
        if !block.is_null() {
            HEAP.dealloc(block, layout);
        }
        !block.is_null()
    }
}

/// Bytes in use, and the size of the heap in bytes.
pub fn usage() -> (usize, usize) {
    // SAFETY: the reference ends before anything else can run that allocates.
    let heap = unsafe { HEAP.0.get() };
    (heap.used(), heap.size())
}
