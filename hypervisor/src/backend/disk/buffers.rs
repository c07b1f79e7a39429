//! Lists of guest memory that system calls read and write, and aligned buffers of our own.

use std::ops::{Deref, DerefMut};

use vm_memory::VolatileSlice;

/// The most buffers that one system call takes (limits.h, IOV_MAX).
pub(super) const MOST_BUFFERS: usize = 1024;
/// Bytes of an aligned buffer.
pub(super) const PIECE: usize = 64 << 10;

/// Segments of guest memory, in order.
#[derive(Debug, Default)]
pub(crate) struct Buffers(pub Vec<libc::iovec>);

// SAFETY: it holds addresses and lengths only. Guest memory may be accessed by every thread; code that follows an
// address has to make sure that it is still mapped.
unsafe impl Send for Buffers {}

impl Deref for Buffers {
    type Target = [libc::iovec];
    fn deref(&self) -> &[libc::iovec] {
        &self.0
    }
}

impl DerefMut for Buffers {
    fn deref_mut(&mut self) -> &mut [libc::iovec] {
        &mut self.0
    }
}

impl Buffers {
    /// `len` bytes of zeroes: `zeroes` as many times as necessary.
    pub fn of_zeroes(zeroes: &Aligned, len: u64) -> Self {
        let mut pieces = Vec::new();
        let mut left = len;
        while left > 0 && !zeroes.is_empty() {
            let part = zeroes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            pieces.push(libc::iovec { iov_base: zeroes.as_ptr().cast_mut().cast(), iov_len: part });
            left -= part as u64;
        }
        Self(pieces)
    }
}

/// The sum of the lengths.
pub(super) fn total(buffers: &[libc::iovec]) -> u64 {
    buffers.iter().map(|b| b.iov_len as u64).sum()
}

/// The first buffers as arguments for a system call: at most `most`, and as many as one call takes.
pub(super) fn for_call(buffers: &[libc::iovec], most: usize) -> (*const libc::iovec, u32) {
    // 1024 at most: it fits.
    (buffers.as_ptr(), buffers.len().min(most).min(MOST_BUFFERS) as u32)
}

/// Drops the first `done` bytes of the buffers.
pub(super) fn advance(mut buffers: &mut [libc::iovec], mut done: usize) -> &mut [libc::iovec] {
    while let Some(first) = buffers.first_mut() {
        let step = done.min(first.iov_len);
        // The result is inside the buffer, or one past its end.
        first.iov_base = first.iov_base.wrapping_byte_add(step);
        first.iov_len -= step;
        done -= step;
        if first.iov_len > 0 {
            break;
        }
        buffers = buffers.get_mut(1..).unwrap_or_default();
    }
    buffers
}

/// Copies the buffers' first bytes into `to`; returns how many bytes were copied.
///
/// # Safety
/// The buffers must be mapped, and no reference to their memory may exist: it is shared with a guest.
pub(super) unsafe fn copy_from(buffers: &[libc::iovec], to: &mut [u8]) -> usize {
    let mut done = 0;
    for b in buffers {
        let rest = to.get_mut(done..).unwrap_or_default();
        // SAFETY: the caller's promise.
        done += unsafe { VolatileSlice::new(b.iov_base.cast(), b.iov_len) }.copy_to(rest);
    }
    done
}

/// Copies `from` to the beginning of the buffers; returns how many bytes fitted.
///
/// # Safety
/// As [`copy_from`].
pub(crate) unsafe fn copy_to(buffers: &[libc::iovec], from: &[u8]) -> usize {
    let mut done = 0;
    for b in buffers {
        let part = b.iov_len.min(from.len() - done);
        let bytes = from.get(done..done + part).unwrap_or_default();
        // SAFETY: the caller's promise.
        unsafe { VolatileSlice::new(b.iov_base.cast(), b.iov_len) }.copy_from(bytes);
        done += part;
    }
    done
}

/// Bytes at an aligned address that does not change; zeroes at first.
#[derive(Debug)]
pub(crate) struct Aligned {
    bytes: Box<[u8]>,
    skip: usize,
    len: usize,
}

impl Aligned {
    /// [`PIECE`] bytes at a multiple of `align`, a power of two.
    pub fn piece(align: usize) -> Self {
        Self::new(PIECE, align)
    }

    /// `len` bytes at a multiple of `align`, a power of two.
    pub fn new(len: usize, align: usize) -> Self {
        let bytes = vec![0; len + align].into_boxed_slice();
        let skip = bytes.as_ptr().addr().wrapping_neg() & align.wrapping_sub(1);
        Self { bytes, skip, len }
    }
}

impl Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.get(self.skip..self.skip + self.len).unwrap_or_default()
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.skip..self.skip + self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::disk::buffers::*;

    #[test]
    fn buffers_are_copied_and_advanced() {
        let mut memory = *b"abcdefgh";
        let base = memory.as_mut_ptr();
        let piece = |at: usize, len| libc::iovec { iov_base: base.wrapping_add(at).cast(), iov_len: len };
        let mut list = [piece(6, 2), piece(0, 0), piece(1, 3)];
        let mut out = [0; 9];
        // SAFETY: the buffers are parts of a live array, to which no reference exists.
        assert_eq!(unsafe { copy_from(&list, &mut out) }, 5);
        assert_eq!(&out[..6], b"ghbcd\0");
        // SAFETY: as above.
        assert_eq!(unsafe { copy_from(&list, &mut out[..3]) }, 3);
        // SAFETY: as above.
        assert_eq!(unsafe { copy_to(&list, b"12345678") }, 5);
        let rest = advance(&mut list, 3);
        assert_eq!((rest.len(), total(rest)), (1, 2));
        // SAFETY: as above.
        assert_eq!(unsafe { copy_to(rest, b"x") }, 1);
        assert_eq!(memory, *b"a3x5ef12");
        assert!(advance(&mut list, 9).is_empty());
    }

    #[test]
    fn pieces_are_aligned() {
        for align in [1, 512, 4096, 1 << 16] {
            let mut piece = Aligned::piece(align);
            assert!(piece.len() == PIECE && piece.as_ptr().addr().is_multiple_of(align));
            piece.fill(1);
        }
        let zeroes = Aligned::piece(4096);
        let list = Buffers::of_zeroes(&zeroes, PIECE as u64 * 2 + 512);
        assert_eq!((list.len(), total(&list)), (3, PIECE as u64 * 2 + 512));
        assert!(Buffers::of_zeroes(&zeroes, 0).is_empty());
    }
}
