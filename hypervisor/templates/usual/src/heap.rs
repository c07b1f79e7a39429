//! The heap of `alloc`.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::{NonNull, null_mut};

use linked_list_allocator::Heap;
use paravane_guest::event;

/// Pages of the heap: 4 MiB.
pub const FRAMES: u64 = 1024;

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(UnsafeCell::new(Heap::empty()));

struct KernelHeap(UnsafeCell<Heap>);

// SAFETY: there is one processor, and `with` keeps handlers of events out while it uses the heap.
unsafe impl Sync for KernelHeap {}

impl KernelHeap {
    fn with<R>(&self, f: impl FnOnce(&mut Heap) -> R) -> R {
        // SAFETY: nothing else runs meanwhile, and `f` does not allocate.
        event::without(|| f(unsafe { &mut *self.0.get() }))
    }
}

/// Gives the heap its memory, once.
pub fn give(memory: &'static mut [MaybeUninit<u8>]) {
    HEAP.with(|heap| heap.init_from_slice(memory));
}

// SAFETY: what `Heap` hands out is what this trait asks for.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.with(|heap| heap.allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr))
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if let Some(start) = NonNull::new(start) {
            // SAFETY: the caller got it from `alloc`, with this layout.
            self.with(|heap| unsafe { heap.deallocate(start, layout) });
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use paravane_guest::Boot;

    paravane_guest::tests! {
        fn memory_comes_back(boot: Boot) {
            crate::start(&boot);
            for _ in 0..100 {
                let much: Vec<u64> = (0..100_000).collect();
                assert_eq!(much.iter().sum::<u64>(), 4_999_950_000);
            }
        }
    }
}
