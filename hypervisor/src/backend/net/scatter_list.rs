//! A frame as a list of segments of guest memory, which system calls read and write in place.
//!
//! This is the only place of the networks that gives addresses of guest memory to the kernel. A list borrows the
//! memory, so that no address outlives the mapping. No reference to guest memory is made, because the guest may
//! change it at any time.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::machine::device_memory::DeviceMemory;
use crate::machine::device_memory::Segment;

/// Segments of a list at most: the limit of readv(2) and writev(2) (`UIO_MAXIOV`), less one in front and one at the
/// end.
pub const MAX_SEGMENTS: usize = 1022;

/// Bytes up to which a frame is copied before it is written. write(2) costs less than writev(2), which is worth more
/// than the copy: the kernel then copies from this CPU's cache.
const COPIED: usize = 2048;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Segments of guest memory, in order. Reused for frame after frame without allocating.
#[derive(Debug)]
pub struct ScatterList<'m> {
    /// The first entry is not a segment, but reserved for `write_to`'s `front`.
    vecs: Vec<libc::iovec>,
    bytes: usize,
    memory: PhantomData<VolatileSlice<'m>>,
}

/// Why a buffer cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// More segments than [`MAX_SEGMENTS`], or more bytes than can be counted.
    #[error("a frame in more than {MAX_SEGMENTS} segments")]
    TooMany,
    /// It is not the device's memory.
    #[error("{0:?} is not memory of the device")]
    Outside(Segment),
}

const NOTHING: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

impl Default for ScatterList<'_> {
    fn default() -> Self {
        let mut vecs = Vec::with_capacity(MAX_SEGMENTS + 2);
        vecs.push(NOTHING);
        Self { vecs, bytes: 0, memory: PhantomData }
    }
}

impl<'m> ScatterList<'m> {
    /// Empties the list.
    pub fn clear(&mut self) {
        self.vecs.truncate(1);
        self.bytes = 0;
    }
    /// Bytes in all segments.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    /// How many segments there are.
    pub fn count(&self) -> usize {
        self.vecs.len() - 1
    }
    /// Adds a segment.
    pub fn push<B: BitmapSlice>(&mut self, slice: &VolatileSlice<'m, B>) -> Result<(), AddError> {
        let bytes = self.bytes.checked_add(slice.len()).filter(|&sum| isize::try_from(sum).is_ok());
        let bytes = bytes.filter(|_| self.count() < MAX_SEGMENTS).ok_or(AddError::TooMany)?;
        self.vecs.push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
        self.bytes = bytes;
        Ok(())
    }
    /// Adds buffers in the device's memory.
    pub(crate) fn push_segments(
        &mut self,
        memory: &'m DeviceMemory,
        segments: &[Segment],
    ) -> Result<(), AddError> {
        for segment in segments {
            let outside = AddError::Outside(*segment);
            let len = usize::try_from(segment.len).map_err(|_| outside)?;
            for slice in memory.view().get_slices(GuestAddress(segment.address), len) {
                self.push(&slice.map_err(|_| outside)?)?;
            }
        }
        Ok(())
    }
    /// Drops the first `count` segments.
    pub fn remove_first(&mut self, count: usize) {
        let count = count.min(self.count());
        self.bytes -= self.vecs.drain(1..=count).map(|segment| segment.iov_len).sum::<usize>();
    }
    /// Removes the first `bytes` bytes, or all if there are fewer.
    pub fn skip(&mut self, bytes: usize) {
        let mut left = bytes.min(self.bytes);
        self.bytes -= left;
        for segment in self.vecs.iter_mut().skip(1) {
            let here = left.min(segment.iov_len);
            segment.iov_base = segment.iov_base.wrapping_byte_add(here);
            segment.iov_len -= here;
            left -= here;
            if left == 0 {
                break;
            }
        }
    }

    /// Copies bytes from `offset` on into `into`, until it is full or the list ends; returns how many.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) -> usize {
        self.each(offset, into.len(), |place, at, len| {
            let Some(into) = into.get_mut(at..at + len) else { return };
            // SAFETY: [A] `place` has `len` bytes; `into` is ours alone and as long.
            unsafe { std::ptr::copy_nonoverlapping(place, into.as_mut_ptr(), len) };
        })
    }
    /// Copies `from` into the list from `offset` on, until the list ends; returns how many bytes.
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> usize {
        self.each(offset, from.len(), |place, at, len| {
            let Some(from) = from.get(at..at + len) else { return };
            // SAFETY: [A] `place` has `len` bytes; `from` is ours and as long.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), place, len) };
        })
    }
    /// Starts to fetch the first [`COPIED`] bytes into this CPU's cache.
    pub(crate) fn prefetch(&self) {
        self.each(0, COPIED, |place, _, len| {
            for at in (0..len).step_by(LINE) {
                // SAFETY: a prefetch has no effect that a program can see, whatever the address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(place.wrapping_add(at).cast()) };
            }
        });
    }
    /// Writes `front` and then all segments to `fd` in one call; returns the bytes written. `room` is overwritten.
    pub fn write_to(&mut self, fd: BorrowedFd<'_>, front: &[u8], room: &mut [u8]) -> io::Result<usize> {
        let wrote = match self.put_together(front, room) {
            // Not libc's `write`, which is a cancellation point: that takes two locked instructions.
            // SAFETY: `whole` is borrowed, and `write` only reads it.
            Some(whole) => unsafe {
                libc::syscall(libc::SYS_write, fd.as_raw_fd(), whole.as_ptr(), whole.len()) as isize
            },
            None => self.write_segments(fd, front),
        };
        usize::try_from(wrote).map_err(|_| io::Error::last_os_error())
    }
    fn write_segments(&mut self, fd: BorrowedFd<'_>, front: &[u8]) -> isize {
        if let Some(first) = self.vecs.first_mut() {
            *first = libc::iovec { iov_base: front.as_ptr().cast_mut().cast(), iov_len: front.len() };
        }
        let count = libc::c_int::try_from(self.vecs.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: [A] for the segments, and the first is `front`, which lives; `writev` only reads them.
        unsafe { libc::writev(fd.as_raw_fd(), self.vecs.as_ptr(), count) }
    }
    /// `front` and a copy of all segments in `room`, if they fit and are at most [`COPIED`] bytes.
    fn put_together<'r>(&self, front: &[u8], room: &'r mut [u8]) -> Option<&'r [u8]> {
        let len = front.len().checked_add(self.bytes).filter(|&len| len <= COPIED)?;
        let whole = room.get_mut(..len)?;
        let (start, rest) = whole.split_at_mut_checked(front.len())?;
        start.copy_from_slice(front);
        self.copy_out(0, rest);
        Some(whole)
    }
    /// Reads from `fd` into the segments and, when they are full, into `spare`, in one call; returns the bytes read.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>, spare: &mut [u8]) -> io::Result<usize> {
        self.vecs.push(libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: spare.len() });
        let vecs = self.vecs.get(1..).unwrap_or_default();
        let count = libc::c_int::try_from(vecs.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: [A] for the segments, and the last is `spare`, which is borrowed for writing.
        let read = unsafe { libc::readv(fd.as_raw_fd(), vecs.as_ptr(), count) };
        self.vecs.pop();
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    fn segments(&self) -> &[libc::iovec] {
        self.vecs.get(1..).unwrap_or_default()
    }
    /// Calls `copy` for each contiguous part of the `len` bytes from `offset` on: its address, its distance from
    /// `offset`, and its length. Returns the sum of the lengths.
    ///
    /// Contract \[A\]: each part is inside a segment, and each segment inside a `VolatileSlice` of `'m`, so that it is
    /// mapped, readable and writable. Others may write to it at the same time; it is only copied by address, as
    /// `VolatileSlice` itself does.
    fn each(&self, offset: usize, len: usize, mut copy: impl FnMut(*mut u8, usize, usize)) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for segment in self.segments() {
            let here = segment.iov_len.saturating_sub(skip).min(len - done);
            if here > 0 {
                copy(segment.iov_base.cast::<u8>().wrapping_add(skip), done, here);
                done += here;
            }
            skip = skip.saturating_sub(segment.iov_len);
            if done == len {
                break;
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use crate::backend::net::scatter_list::*;

    /// The pieces of `memory` from each offset, as long as each length.
    fn pieces<'m>(memory: &'m mut [u8], parts: &[(usize, usize)]) -> ScatterList<'m> {
        let slice = VolatileSlice::from(memory);
        let mut pieces = ScatterList::default();
        for &(offset, len) in parts {
            pieces.push(&slice.subslice(offset, len).unwrap()).unwrap();
        }
        pieces
    }

    #[test]
    fn copies_cross_pieces_and_stop_at_the_end() {
        let mut memory = *b"0123456789";
        let list = pieces(&mut memory, &[(8, 2), (0, 0), (0, 3)]);
        let mut out = [b'-'; 8];
        assert_eq!((list.bytes(), list.count()), (5, 3));
        assert_eq!((list.copy_out(1, &mut out), &out), (4, b"9012----"));
        assert_eq!(list.copy_out(5, &mut out), 0);
        assert_eq!(list.copy_out(usize::MAX, &mut out), 0);
        assert_eq!(list.copy_in(1, b"abcdefgh"), 4);
        drop(list);
        assert_eq!(&memory, b"bcd345678a");
    }

    #[test]
    fn skipping_and_removing_keep_count() {
        let mut memory = *b"0123456789";
        let mut list = pieces(&mut memory, &[(0, 2), (2, 3), (5, 5)]);
        list.skip(4);
        let mut out = [0; 6];
        assert_eq!((list.bytes(), list.copy_out(0, &mut out), &out), (6, 6, b"456789"));
        list.remove_first(2);
        assert_eq!((list.bytes(), list.count()), (5, 1));
        list.skip(100);
        assert_eq!((list.bytes(), list.copy_out(0, &mut out)), (0, 0));
        list.remove_first(100);
        assert_eq!((list.bytes(), list.count()), (0, 0));
    }

    #[test]
    fn a_frame_is_written_from_and_read_into_guest_memory() {
        let mut memory = [0; 16];
        let (mut ours, other) = UnixStream::pair().unwrap();
        ours.write_all(b"frame and more").unwrap();
        let mut list = pieces(&mut memory, &[(0, 3), (8, 2)]);
        let mut spare = [0; 32];
        assert_eq!(list.read_from(other.as_fd(), &mut spare).unwrap(), 14);
        assert_eq!(&spare[..9], b" and more");
        // In one buffer, and without any spare bytes.
        for room in [&mut [0; 32][..], &mut []] {
            assert_eq!(list.write_to(other.as_fd(), b">>", room).unwrap(), 7);
            let mut got = [0; 7];
            ours.read_exact(&mut got).unwrap();
            assert_eq!(&got, b">>frame");
        }
        drop(list);
        assert_eq!((&memory[..3], &memory[8..10]), (&b"fra"[..], &b"me"[..]));
    }

    #[test]
    fn too_many_pieces_are_refused() {
        let mut memory = [0; 4];
        let slice = VolatileSlice::from(&mut memory[..]);
        let mut list = ScatterList::default();
        for _ in 0..MAX_SEGMENTS {
            list.push(&slice).unwrap();
        }
        assert_eq!(list.push(&slice), Err(AddError::TooMany));
        list.remove_first(MAX_SEGMENTS - 3);
        assert_eq!((list.count(), list.bytes(), list.push(&slice)), (3, 12, Ok(())));
    }
}
