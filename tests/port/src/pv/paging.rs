//! Page tables that the hypervisor changes.

use core::cell::UnsafeCell;

use paravane_guest::Boot;
use paravane_guest::paging::{FrameSource, FreeMemory, Mmu, PageFlags, PagingError};

use crate::machine::PAGE_SIZE;

struct Paging {
    mmu: Mmu<'static>,
    free: FreeMemory,
}

static PAGING: Cell = Cell(UnsafeCell::new(None));

struct Cell(UnsafeCell<Option<Paging>>);

// SAFETY: there is one processor, and `with` is not entered twice: its code touches no page that is not there.
unsafe impl Sync for Cell {}

/// Takes the domain's memory.
pub fn init(boot: &Boot) {
    let (mmu, free) = boot.take_memory().expect("memory can be mapped");
    // SAFETY: nothing uses it yet.
    unsafe { *PAGING.0.get() = Some(Paging { mmu, free }) };
}

fn with<R>(f: impl FnOnce(&mut Paging) -> Result<R, PagingError>) -> R {
    // SAFETY: as above.
    let paging = unsafe { (*PAGING.0.get()).as_mut() }.expect("`init` was called");
    f(paging).expect("the hypervisor agrees")
}

// ANCHOR: map
/// Maps a page to a free frame: a hypercall.
pub fn map(page: u64) {
    map_all(page, 1);
}
// ANCHOR_END: map

// ANCHOR: map_all
/// Maps pages to free frames: the changes are queued, and made by one hypercall.
pub fn map_all(first: u64, count: u64) {
    with(|Paging { mmu, free }| {
        for page in (0..count).map(|n| first + n * PAGE_SIZE) {
            let frame = free.take().ok_or(PagingError::OutOfFrames)?;
            mmu.kernel_space().map(mmu, free, page, frame, PageFlags::WRITE)?;
        }
        mmu.flush()
    });
}
// ANCHOR_END: map_all
