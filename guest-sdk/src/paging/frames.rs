//! Frames for page tables.

use core::ops::Range;

use crate::memory::Pfn;

/// Where page tables come from and go to.
///
/// # Safety
/// A frame that [`take`](Self::take) returns is the caller's alone until it is given back, is mapped writable
/// in the direct map, and nothing refers to its contents.
pub unsafe trait FrameSource {
    /// Takes a frame, whatever is in it.
    fn take(&mut self) -> Option<Pfn>;
    /// Gives a frame back, writable again.
    fn give(&mut self, frame: Pfn);
}

/// Hands out the frames of a range, lowest first: what a kernel has before it has an allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFrames(Range<u64>);

impl BootFrames {
    /// A source of the frames of `range`.
    ///
    /// # Safety
    /// They are free (see [`crate::Boot::free_frames`]), in the direct map, and used by nobody else.
    pub const unsafe fn new(range: Range<u64>) -> Self {
        Self(range)
    }

    /// The frames that were not taken.
    pub fn remaining(&self) -> Range<u64> {
        self.0.clone()
    }
}

// SAFETY: the contract of `new`; no frame is handed out twice.
unsafe impl FrameSource for BootFrames {
    fn take(&mut self) -> Option<Pfn> {
        self.0.next().map(Pfn)
    }

    /// Takes back the last frame only; start-of-day frees nothing else.
    fn give(&mut self, frame: Pfn) {
        if frame.0 + 1 == self.0.start {
            self.0.start = frame.0;
        }
    }
}
