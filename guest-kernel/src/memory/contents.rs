//! The contents of frames, for code that copies them.

use super::frames::Frame;

/// Access to the contents of frames that their caller owns.
pub trait Contents {
    /// Copies bytes of a frame out.
    fn copy_out(&self, frame: Frame, offset: usize, into: &mut [u8]);
    /// Copies bytes into a frame.
    fn copy_in(&mut self, frame: Frame, offset: usize, from: &[u8]);
    /// Copies all of a frame.
    fn copy_frame(&mut self, from: Frame, to: Frame);
    /// Fills a frame with zeroes.
    fn zero(&mut self, frame: Frame);
}

/// Contents through the direct map, in which all memory is.
#[cfg(guest)]
pub mod direct {
    use super::Frame;
    use crate::memory::frames::PAGE_SIZE;
    use crate::memory::layout::direct_map;

    const PAGE: usize = PAGE_SIZE as usize;

    fn within(frame: Frame, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= PAGE && len <= PAGE - offset, "{len} bytes at {offset} are not in one frame");
        (direct_map(frame) as *mut u8).wrapping_add(offset)
    }

    /// See [`Contents`](super::Contents); so are the others.
    pub fn copy_out(frame: Frame, offset: usize, into: &mut [u8]) {
        // SAFETY: in bounds of a frame, which the direct map maps, and which no reference is to.
        unsafe { within(frame, offset, into.len()).copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
    }

    /// See there.
    pub fn copy_in(frame: Frame, offset: usize, from: &[u8]) {
        // SAFETY: as in `copy_out`; the caller owns the frame.
        unsafe { within(frame, offset, from.len()).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
    }

    /// See there.
    pub fn copy_frame(from: Frame, to: Frame) {
        if from != to {
            // SAFETY: as in `copy_in`, for two frames.
            unsafe { within(to, 0, PAGE).copy_from_nonoverlapping(within(from, 0, PAGE), PAGE) };
        }
    }

    /// See there.
    pub fn zero(frame: Frame) {
        // SAFETY: as in `copy_in`.
        unsafe { within(frame, 0, PAGE).write_bytes(0, PAGE) };
    }
}
