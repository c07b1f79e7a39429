//! Frames for page tables.

use core::ops::Range;

use crate::memory::Pfn;

/// A source of frames for page tables.
///
/// # Safety
/// A frame that [`take`](Self::take) returns is used by the caller only until it is given back, is mapped writable in
/// the direct map, and no reference to its contents exists.
pub unsafe trait FrameSource {
    /// Takes a frame, with any contents.
    fn take(&mut self) -> Option<Pfn>;
    /// Gives a frame back, writable again.
    fn give(&mut self, frame: Pfn);
}

/// Hands out the frames of a range, lowest first: a source for kernels that have no allocator yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFrames(Range<u64>);

impl BootFrames {
    /// A source of the frames of `range`.
    ///
    /// # Safety
    /// The frames are free (see [`crate::Boot::free_frames`]), in the direct map, and not used otherwise.
    pub const unsafe fn new(range: Range<u64>) -> Self {
        Self(range)
    }

    /// The frames that have not been taken.
    pub fn remaining(&self) -> Range<u64> {
        self.0.clone()
    }
}

// SAFETY: the contract of `new`; no frame is handed out twice.
unsafe impl FrameSource for BootFrames {
    fn take(&mut self) -> Option<Pfn> {
        self.0.next().map(Pfn)
    }

    /// Takes back only the frame that was taken last; start-of-day frees no other.
    fn give(&mut self, frame: Pfn) {
        if frame.0 + 1 == self.0.start {
            self.0.start = frame.0;
        }
    }
}
