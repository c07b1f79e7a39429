//! Images, and the simplest of them: a file or block device as it is.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;

use super::buffers::{Aligned, Buffers, MOST_BUFFERS, advance, copy_to, for_call, total};
use super::direct::{Alignment, Direct};
use crate::virtio::block::{OpenError, Options, SECTOR};

/// What an image can do, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Its smallest unit: what guests are told to keep to, because less of it costs more.
    pub block: u64,
    /// The least that a discard gives back; `None`: nothing is given back.
    pub discard: Option<u64>,
}

/// Where a disk's bytes are. Buffers are the guest's memory; an operation is done wholly or is an error.
pub(crate) trait Image: Send + Sync {
    /// Its size.
    fn bytes(&self) -> u64;
    /// What it can do.
    fn limits(&self) -> Limits;
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

/// A disk's file, locked until this goes.
///
/// Closing it does not do: the lock is of what was opened, not of the descriptor, so that a child process, which
/// another thread is about to make into some program, holds it too until it gets there (flock(2)).
#[derive(Debug)]
pub(crate) struct Locked(pub File);

impl Drop for Locked {
    fn drop(&mut self) {
        // One that is not locked has nothing to lose.
        let _ = self.0.unlock();
    }
}

/// Opens and locks a disk's file.
pub(crate) fn open(path: &Path, options: &Options) -> Result<Locked, OpenError> {
    let opened = |error| OpenError::Open { path: path.to_owned(), error };
    let kind = std::fs::metadata(path).map_err(opened)?.file_type();
    // Before it is opened: that of a FIFO would wait for somebody at the other end.
    if !kind.is_file() && !kind.is_block_device() {
        return Err(OpenError::NoDisk(path.to_owned()));
    }
    let flags = libc::O_CLOEXEC | if options.direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).write(!options.readonly).custom_flags(flags).open(path);
    let file = file.map_err(opened)?;
    let locked = if options.readonly { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(path.to_owned())),
        // A file system without locks protects nobody; that is no reason not to use it.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Locked(file)),
    }
}

/// The first bytes of a file, if it has so many.
pub(crate) fn beginning<const N: usize>(file: &File) -> Option<[u8; N]> {
    /// A page at a page's address: what any O_DIRECT takes.
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let mut page = Page([0; 4096]);
    let count = file.read_at(&mut page.0, 0).ok()?;
    page.0.get(..count)?.first_chunk().copied()
}

/// Whether a file has qcow2's magic number. A guest can write that into a raw disk, so that it decides nothing.
pub(crate) fn begins_as_qcow2(file: &File) -> bool {
    beginning(file) == Some(*b"QFI\xfb")
}

/// What a discard of a file gives back at least: a block of most file systems.
const FILE_BLOCK: u64 = 4096;

/// A file or block device.
pub(crate) struct RawImage {
    file: Locked,
    /// The disk's size: the file's, rounded up to a sector as QEMU does.
    bytes: u64,
    /// Where the file ended when it was opened. Between this and the disk's end are zeroes, until that is written.
    end: u64,
    /// Set if the file was opened with O_DIRECT.
    direct: Option<Direct>,
    /// Made when the first zeroes are written.
    zeroes: OnceLock<Aligned>,
}

impl RawImage {
    /// The image in `file`; `direct`: it was opened with O_DIRECT.
    pub fn new(file: Locked, direct: bool) -> io::Result<Self> {
        use std::io::{Seek, SeekFrom};
        // A block device's metadata has no length; its end has a position.
        let end = (&file.0).seek(SeekFrom::End(0))?;
        let direct = direct.then(|| Direct::new(&file.0)).transpose()?;
        // Around the page cache, a part of a sector cannot be read.
        let bytes = if direct.is_some() { end } else { end.next_multiple_of(SECTOR) };
        Ok(Self { file, bytes, end, direct, zeroes: OnceLock::new() })
    }
    /// The image in a file that has no end, as a pipe.
    #[cfg(test)]
    pub fn of_size(file: File, bytes: u64) -> Self {
        Self { file: Locked(file), bytes, end: bytes, direct: None, zeroes: OnceLock::new() }
    }
    /// Its descriptor, good for as long as the image lives.
    pub fn fd(&self) -> RawFd {
        self.file.0.as_raw_fd()
    }
    /// What the kernel wants of addresses; `None`: nothing.
    pub fn alignment(&self) -> Option<Alignment> {
        self.direct.as_ref().map(|direct| direct.alignment)
    }
    /// Whether every request's offset and length is right for the kernel.
    pub fn takes_sectors(&self) -> bool {
        self.direct.as_ref().is_none_or(Direct::takes_sectors)
    }
    /// Completes a read for which the file has no more bytes: fills `buffers` with the zeroes that are between its end
    /// and the disk's.
    ///
    /// # Errors
    /// When the file ends before that: somebody has cut it short.
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
    /// What zeroes of this length are written from.
    pub fn zeroes(&self, len: u64) -> Buffers {
        let align = self.alignment().map_or(1, |a| a.memory);
        Buffers::of_zeroes(self.zeroes.get_or_init(|| Aligned::piece(align)), len)
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
pub(crate) const PUNCH: libc::c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// How a range becomes zeroes and keeps its room.
pub(crate) const ZERO: libc::c_int = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Whether the host's file system cannot do what fallocate(2) was asked for.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL))
}

/// An offset as system calls want it.
pub(crate) fn offset_of(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Calls `transfer` until all of the buffers are done, or `at_end` when it has nothing more.
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
        // SAFETY: `count` buffers from `first` on are live, and what they name is the guest's memory, which the
        // caller keeps; it is shared with the guest, so that no reference to it exists in this program.
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
            // A discard is advice.
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
