//! How many owners a frame has: programs share the frames of a fork until one of them writes.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use super::frames::Frame;

/// The owners of each frame beyond the first.
#[derive(Debug, Default)]
pub struct Shares(Vec<u16>);

impl Shares {
    /// Of frames that have one owner at most.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Makes room for the numbers of frames below `frames`; once.
    pub fn prepare(&mut self, frames: u64) {
        self.0.resize(frames as usize, 0);
    }

    /// Whether a frame has several owners.
    pub fn is_shared(&self, frame: Frame) -> bool {
        self.0[frame.0 as usize] != 0
    }

    /// A frame has another owner.
    pub fn share(&mut self, frame: Frame) {
        let count = &mut self.0[frame.0 as usize];
        *count = count.checked_add(1).expect("a frame has no more than 65536 owners");
    }

    /// An owner gives a frame up; true if it was the last one.
    pub fn give_up(&mut self, frame: Frame) -> bool {
        let count = &mut self.0[frame.0 as usize];
        let last = *count == 0;
        *count = count.saturating_sub(1);
        last
    }
}
