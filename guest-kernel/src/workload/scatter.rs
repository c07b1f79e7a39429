//! Pages and frames in a scattered order, the same in every run.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use crate::memory::frames::{Frame, FrameAllocator, PAGE_SIZE};
use crate::memory::paging::Span;

use super::measure::Failure;

/// A page to map: its address, its frame, and the value for its first 8 bytes.
#[derive(Clone, Copy)]
pub struct Page {
    pub va: u64,
    pub frame: Frame,
    pub pattern: u64,
}

/// How much larger than its pages the window is in which they are scattered.
const SPREAD: u64 = 8;
/// Odd, and so a permutation of every power of two.
const STRIDE: u64 = 1103;

/// The window in which [`pages`] puts `count` pages from `base` on.
pub const fn window(base: u64, count: u64) -> Span {
    Span::pages(base, count * SPREAD)
}

/// `count` pages (a power of two), scattered over the window at `base`, with as many frames in another order.
pub fn pages(frames: &mut FrameAllocator<'_>, base: u64, count: u64) -> Result<Vec<Page>, Failure> {
    debug_assert!(count.is_power_of_two());
    if frames.free_frames() < count {
        return Err(Failure("too-little-memory"));
    }
    let owned: Vec<Frame> = (0..count).map_while(|_| frames.allocate()).collect();
    let page = |i: u64| {
        let va = base + i.wrapping_mul(STRIDE) % (count * SPREAD) * PAGE_SIZE;
        let frame = owned[(i.wrapping_mul(STRIDE * 3) % count) as usize];
        Page { va, frame, pattern: va ^ frame.0.rotate_left(48) }
    };
    Ok((0..count).map(page).collect())
}

/// Frees the pages' frames.
pub fn release(frames: &mut FrameAllocator<'_>, pages: &[Page]) {
    for page in pages {
        if let Err(error) = frames.free(page.frame) {
            panic!("a workload's frame was freed by someone else: {error:?}");
        }
    }
}
