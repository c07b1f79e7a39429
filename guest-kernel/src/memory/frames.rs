//! The frame allocator: which frames of memory are free.
//!
//! Frames are *pseudo-physical* everywhere in the kernel: numbered from 0 without holes. Only the machine layer knows
//! the number by which the machine itself calls a frame. Nothing here touches memory.
#![forbid(unsafe_code)]

use core::ops::Range;

/// Bytes in a page, and in a frame.
pub const PAGE_SIZE: u64 = 4096;

/// The number of a frame of the kernel's (pseudo-physical) memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(pub u64);

/// The frame that was to be freed is not allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAllocated(pub Frame);

/// Hands out frames one by one, or in runs, lowest first.
///
/// One bit for each frame, set while it is free. A map of zeroes describes an allocator without free frames: a frame
/// can be allocated only after it was [added](Self::add).
#[derive(Debug)]
pub struct FrameAllocator<'m> {
    free: &'m mut [u64],
    free_count: u64,
    /// No word before this one has a bit set.
    first_word: usize,
}

impl<'m> FrameAllocator<'m> {
    /// An allocator without frames that can track 64 of them for each word of `map`.
    pub fn new(map: &'m mut [u64]) -> Self {
        map.fill(0);
        Self { free: map, free_count: 0, first_word: 0 }
    }

    /// How many frames the map has room for: frame numbers are below this.
    pub fn capacity(&self) -> u64 {
        self.free.len() as u64 * 64
    }

    /// How many frames are free.
    pub fn free_frames(&self) -> u64 {
        self.free_count
    }

    /// Makes the frames of `range` available; those past the capacity stay unused.
    pub fn add(&mut self, range: Range<Frame>) {
        for number in range.start.0..range.end.0.min(self.capacity()) {
            self.set_free(Frame(number));
        }
    }

    /// Takes the frames of `range` out of use, whether they were available or not.
    pub fn reserve(&mut self, range: Range<Frame>) {
        for number in range.start.0..range.end.0.min(self.capacity()) {
            self.set_used(Frame(number));
        }
    }

    /// Takes the lowest free frame. Its contents are unspecified.
    pub fn allocate(&mut self) -> Option<Frame> {
        let word = (self.first_word..self.free.len()).find(|&i| self.free[i] != 0)?;
        self.first_word = word;
        let frame = Frame(word as u64 * 64 + u64::from(self.free[word].trailing_zeros()));
        self.set_used(frame);
        Some(frame)
    }

    /// Takes `count` neighbouring frames and returns the first.
    pub fn allocate_run(&mut self, count: u64) -> Option<Frame> {
        let mut run = 0;
        for number in self.first_word as u64 * 64..self.capacity() {
            run = if self.is_free(Frame(number)) { run + 1 } else { 0 };
            if run == count {
                let first = Frame(number + 1 - count);
                self.reserve(first..Frame(number + 1));
                return Some(first);
            }
        }
        None
    }

    /// Frees a frame.
    ///
    /// # Errors
    /// When the frame is free already or past the capacity: a bug of the caller, which must not go unnoticed.
    pub fn free(&mut self, frame: Frame) -> Result<(), NotAllocated> {
        if frame.0 >= self.capacity() || self.is_free(frame) {
            return Err(NotAllocated(frame));
        }
        self.set_free(frame);
        Ok(())
    }

    fn is_free(&self, frame: Frame) -> bool {
        self.free[(frame.0 / 64) as usize] & 1 << (frame.0 % 64) != 0
    }

    fn set_free(&mut self, frame: Frame) {
        if !self.is_free(frame) {
            let word = (frame.0 / 64) as usize;
            self.free[word] |= 1 << (frame.0 % 64);
            self.free_count += 1;
            self.first_word = self.first_word.min(word);
        }
    }

    fn set_used(&mut self, frame: Frame) {
        if self.is_free(frame) {
            self.free[(frame.0 / 64) as usize] &= !(1 << (frame.0 % 64));
            self.free_count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_free_before_it_is_added() {
        let mut map = [u64::MAX; 2];
        let mut frames = FrameAllocator::new(&mut map);
        assert_eq!(frames.allocate(), None);
        frames.add(Frame(70)..Frame(72));
        assert_eq!(frames.free_frames(), 2);
        assert_eq!(
            [frames.allocate(), frames.allocate(), frames.allocate()],
            [Some(Frame(70)), Some(Frame(71)), None]
        );
    }

    #[test]
    fn frames_past_the_capacity_are_left_alone() {
        let mut map = [0; 1];
        let mut frames = FrameAllocator::new(&mut map);
        frames.add(Frame(60)..Frame(1 << 40));
        assert_eq!(frames.free_frames(), 4);
        frames.reserve(Frame(62)..Frame(1 << 40));
        assert_eq!(frames.free_frames(), 2);
        assert_eq!(frames.free(Frame(64)), Err(NotAllocated(Frame(64))));
    }

    #[test]
    fn a_frame_is_given_back_once() {
        let mut map = [0; 2];
        let mut frames = FrameAllocator::new(&mut map);
        frames.add(Frame(1)..Frame(100));
        let a = frames.allocate().unwrap();
        let b = frames.allocate().unwrap();
        assert_eq!(frames.free(a), Ok(()));
        assert_eq!(frames.free(a), Err(NotAllocated(a)));
        assert_eq!(frames.allocate(), Some(a), "the lowest free frame first");
        assert_eq!(frames.free(b), Ok(()));
        assert_eq!(frames.free_frames(), 98);
    }

    #[test]
    fn runs_do_not_cross_used_frames() {
        let mut map = [0; 4];
        let mut frames = FrameAllocator::new(&mut map);
        frames.add(Frame(0)..Frame(256));
        frames.reserve(Frame(62)..Frame(66));
        assert_eq!(frames.allocate_run(63), Some(Frame(66)));
        assert_eq!(frames.allocate_run(62), Some(Frame(0)));
        assert_eq!(frames.allocate_run(128), None);
        assert_eq!(frames.free_frames(), 256 - 4 - 63 - 62);
    }
}
