//! The simplest image: a file or block device as it is.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;

use super::buffers::{Aligned, Buffers, MOST_BUFFERS, advance, copy_to, for_call, total};
use super::direct::{Alignment, Direct};
use super::file::Locked;
use super::image::{Image, Limits, SECTOR};

/// The smallest range of a file that a discard frees: a block of most file systems.
const FILE_BLOCK: u64 = 4096;

/// A file or block device.
pub(crate) struct RawImage {
    file: Locked,
    /// The disk's size: the file's, rounded up to a sector as QEMU does.
    bytes: u64,
    /// The file's length when it was opened. The disk has zeroes from here to its end, until they are written to.
    end: u64,
    /// Set if the file was opened with O_DIRECT.
    direct: Option<Direct>,
    /// Created when zeroes are first written.
    zeroes: OnceLock<Aligned>,
}

impl RawImage {
    /// The image in `file`; `direct`: it was opened with O_DIRECT.
    pub fn new(file: Locked, direct: bool) -> io::Result<Self> {
        use std::io::{Seek, SeekFrom};
        // The metadata of a block device has no length, but its end has a position.
        let end = (&file.0).seek(SeekFrom::End(0))?;
        let direct = direct.then(|| Direct::new(&file.0)).transpose()?;
        // Direct I/O cannot read a part of a sector.
        let bytes = if direct.is_some() { end } else { end.next_multiple_of(SECTOR) };
        Ok(Self { file, bytes, end, direct, zeroes: OnceLock::new() })
    }
    /// An image in a file without an end, like a pipe.
    #[cfg(test)]
    pub fn of_size(file: std::fs::File, bytes: u64) -> Self {
        Self { file: Locked(file), bytes, end: bytes, direct: None, zeroes: OnceLock::new() }
    }
    /// Its descriptor, which is open as long as the image lives.
    pub fn fd(&self) -> RawFd {
        self.file.0.as_raw_fd()
    }
    /// The alignment that the kernel requires, if any.
    pub fn alignment(&self) -> Option<Alignment> {
        self.direct.as_ref().map(|direct| direct.alignment)
    }
    /// Whether the kernel accepts the offset and length of every request.
    pub fn takes_sectors(&self) -> bool {
        self.direct.as_ref().is_none_or(Direct::takes_sectors)
    }
    /// Completes a read at the end of the file: fills `buffers` with the zeroes between the file's end and the disk's.
    ///
    /// # Errors
    /// When the file has become shorter than it was.
    ///
    /// # Safety
    /// As [`copy_to`].
    pub unsafe fn read_past_end(&self, buffers: &[libc::iovec], offset: u64) -> io::Result<()> {
        if offset < self.end || total(buffers) > SECTOR {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: the caller's promise.
        unsafe { copy_to(buffers, &[0; SECTOR as usize]) };
        Ok(())
    }
    /// Buffers to write `len` zeroes from.
    pub fn zeroes(&self, len: u64) -> Buffers {
        let align = self.alignment().map_or(1, |a| a.memory);
        Buffers::of_zeroes(self.zeroes.get_or_init(|| Aligned::piece(align)), len)
    }

    fn fallocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (offset_of(offset)?, offset_of(len)?);
        // SAFETY: only an open descriptor and numbers are passed.
        match unsafe { libc::fallocate(self.fd(), mode, offset, len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// fallocate(2) mode that frees a range, which then reads as zeroes.
pub(super) const PUNCH: libc::c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// fallocate(2) mode that makes a range zeroes and keeps its blocks allocated.
pub(super) const ZERO: libc::c_int = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Whether fallocate(2) failed because the host's file system does not support the mode.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL))
}

/// An offset as system calls take it.
pub(super) fn offset_of(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Calls `transfer` until all buffers are done, and `at_end` when it transfers nothing.
fn all(
    mut buffers: &mut [libc::iovec],
    mut offset: u64,
    transfer: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
    at_end: impl Fn(&[libc::iovec], u64) -> io::Result<()>,
) -> io::Result<()> {
    while !buffers.is_empty() {
        let (first, count) = for_call(buffers, MOST_BUFFERS);
        match usize::try_from(transfer(first, count.cast_signed(), offset_of(offset)?)) {
            Ok(0) => return at_end(buffers, offset),
            Ok(done) => {
                buffers = advance(buffers, done);
                offset += done as u64;
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

impl Image for RawImage {
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn limits(&self) -> Limits {
        let block = self.alignment().map_or(SECTOR, |a| SECTOR.max(a.block as u64));
        Limits { block, discard: Some(block.max(FILE_BLOCK)) }
    }
    fn read(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()> {
        if let Some(direct) = self.direct.as_ref().filter(|d| !d.alignment.fits(buffers, offset)) {
            return direct.read(&self.file.0, buffers, offset);
        }
        // SAFETY: `count` buffers from `first` on are live. They are guest memory, which the caller keeps mapped; no
        // reference to it exists in this program.
        let read = |first, count, at| unsafe { libc::preadv(self.fd(), first, count, at) };
        // SAFETY: as above.
        all(buffers, offset, read, |rest, at| unsafe { self.read_past_end(rest, at) })
    }
    fn write(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()> {
        // SAFETY: as above.
        let write = |first, count, at| unsafe { libc::pwritev(self.fd(), first, count, at) };
        let none = |_: &[libc::iovec], _| Err(io::ErrorKind::WriteZero.into());
        match &self.direct {
            Some(direct) if !direct.alignment.fits(buffers, offset) => {
                direct.write(&self.file.0, buffers, offset)
            }
            Some(direct) => direct.whole(|| all(buffers, offset, write, none)),
            None => all(buffers, offset, write, none),
        }
    }
    fn flush(&self) -> io::Result<()> {
        self.file.0.sync_data()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.fallocate(PUNCH, offset, len) {
            // A discard is only a hint.
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        match self.fallocate(if unmap { PUNCH } else { ZERO }, offset, len) {
            Err(error) if is_unsupported(&error) => self.write(&mut self.zeroes(len), offset),
            result => result,
        }
    }
}
