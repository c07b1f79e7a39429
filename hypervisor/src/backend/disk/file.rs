//! A disk's file, opened and locked.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};

use super::open_error::OpenError;
use super::options::Options;

/// A disk's file, locked until this is dropped.
///
/// Closing the file would not be enough: the lock belongs to the open file description (flock(2)). If another thread is
/// starting a program, the child process shares the description until it calls execve(2).
#[derive(Debug)]
pub(crate) struct Locked(pub File);

impl Drop for Locked {
    fn drop(&mut self) {
        // An error means that it is not locked.
        let _ = self.0.unlock();
    }
}

/// Opens and locks a disk's file.
pub(super) fn open(options: &Options) -> Result<Locked, OpenError> {
    let path = options.path.as_path();
    let opened = |error| OpenError::Open { path: path.to_owned(), error };
    let kind = std::fs::metadata(path).map_err(opened)?.file_type();
    // Checked before the file is opened: opening a FIFO waits for the other end.
    if !kind.is_file() && !kind.is_block_device() {
        return Err(OpenError::NoDisk(path.to_owned()));
    }
    let flags = libc::O_CLOEXEC | if options.direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).write(!options.readonly).custom_flags(flags).open(path);
    let file = file.map_err(opened)?;
    let locked = if options.readonly { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(path.to_owned())),
        // Some file systems have no locks. Their files can be used all the same.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Locked(file)),
    }
}

/// The first `N` bytes of a file, if it is that long.
pub(super) fn beginning<const N: usize>(file: &File) -> Option<[u8; N]> {
    /// A page, with the alignment that every O_DIRECT accepts.
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let mut page = Page([0; 4096]);
    let count = file.read_at(&mut page.0, 0).ok()?;
    page.0.get(..count)?.first_chunk().copied()
}

/// Whether a file begins with qcow2's magic number. That does not make it a qcow2 image: a guest can write the number
/// to a raw disk.
pub(super) fn begins_as_qcow2(file: &File) -> bool {
    beginning(file) == Some(*b"QFI\xfb")
}
