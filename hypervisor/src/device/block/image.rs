//! Images, and the simplest of them: a file or block device as it is.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::{OpenError, Options};

/// Where a disk's bytes are. Buffers are the guest's memory; an operation is done wholly or is an error.
pub(super) trait Image: Send + Sync {
    /// Its size.
    fn bytes(&self) -> u64;
    /// Whether room can be given back.
    fn discards(&self) -> bool;
    /// Fills the buffers.
    fn read(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()>;
    /// Writes the buffers.
    fn write(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()>;
    /// Puts on stable storage all that was written.
    fn flush(&self) -> io::Result<()>;
    /// Forgets a range, whose content is then anything.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range zeroes; `unmap`: the room for it may be given back.
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}

/// Opens and locks a disk's file.
pub(super) fn open(path: &Path, options: &Options) -> Result<File, OpenError> {
    let flags = libc::O_CLOEXEC | if options.direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).write(!options.readonly).custom_flags(flags).open(path);
    let file = file.map_err(|error| OpenError::Open { path: path.to_owned(), error })?;
    let locked = if options.readonly { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(path.to_owned())),
        // A file system without locks protects nobody; that is no reason not to use it.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Whether a file has qcow2's magic number. A guest can write that into a raw disk, so that it decides nothing.
pub(super) fn begins_as_qcow2(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"QFI\xfb"
}

/// A file or block device.
pub(super) struct RawImage {
    file: File,
    bytes: u64,
}

impl RawImage {
    /// The image in `file`.
    pub fn new(file: File) -> io::Result<Self> {
        use std::io::{Seek, SeekFrom};
        // A block device's metadata has no length; its end has a position.
        let bytes = (&file).seek(SeekFrom::End(0))?;
        Ok(Self { file, bytes })
    }
    /// Its descriptor, good for as long as the image lives.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
    /// Makes a range zeroes where the file system has no better way.
    pub fn zero_by_writing(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        let zeroes = [0; 1 << 16];
        while len > 0 {
            let part = zeroes.len().min(usize::try_from(len).unwrap_or(zeroes.len()));
            self.file.write_all_at(zeroes.get(..part).unwrap_or_default(), offset)?;
            (offset, len) = (offset + part as u64, len - part as u64);
        }
        Ok(())
    }

    fn fallocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (offset_of(offset)?, offset_of(len)?);
        // SAFETY: a descriptor that is open, and numbers.
        match unsafe { libc::fallocate(self.fd(), mode, offset, len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// How a range is given back to the host's file system, its content being zeroes afterwards.
pub(super) const PUNCH: libc::c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// How a range becomes zeroes and keeps its room.
pub(super) const ZERO: libc::c_int = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Whether the host's file system cannot do what fallocate(2) was asked for.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV | libc::EINVAL))
}

/// An offset as system calls want it.
pub(super) fn offset_of(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The most buffers that one system call takes (limits.h, IOV_MAX).
pub(super) const MOST_BUFFERS: usize = 1024;

/// The buffers, at most as many as one call takes, as such calls want them.
pub(super) fn for_call(buffers: &[libc::iovec]) -> (*const libc::iovec, libc::c_int) {
    // 1024 at most: it fits.
    (buffers.as_ptr(), buffers.len().min(MOST_BUFFERS) as libc::c_int)
}

/// Drops the first `done` bytes of the buffers.
pub(super) fn advance(mut buffers: &mut [libc::iovec], mut done: usize) -> &mut [libc::iovec] {
    while let Some(first) = buffers.first_mut() {
        let step = done.min(first.iov_len);
        // Still within, or one past the end of, what the buffer was.
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

/// Calls `transfer` until all of the buffers are done.
fn all(
    mut buffers: &mut [libc::iovec],
    mut offset: u64,
    transfer: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
) -> io::Result<()> {
    while !buffers.is_empty() {
        let (first, count) = for_call(buffers);
        match usize::try_from(transfer(first, count, offset_of(offset)?)) {
            // The file ends before the disk does: somebody has cut it short.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
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
    fn discards(&self) -> bool {
        true
    }
    fn read(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()> {
        // SAFETY: `count` buffers from `first` on are live, and what they name is the guest's memory, which the
        // caller keeps; it is shared with the guest, so that no reference to it exists in this program.
        all(buffers, offset, |first, count, at| unsafe { libc::preadv(self.fd(), first, count, at) })
    }
    fn write(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()> {
        // SAFETY: as above.
        all(buffers, offset, |first, count, at| unsafe { libc::pwritev(self.fd(), first, count, at) })
    }
    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.fallocate(PUNCH, offset, len) {
            // A discard is advice.
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        match self.fallocate(if unmap { PUNCH } else { ZERO }, offset, len) {
            Err(error) if is_unsupported(&error) => self.zero_by_writing(offset, len),
            result => result,
        }
    }
}
