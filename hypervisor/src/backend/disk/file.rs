//! A disk's file, opened and locked.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};

use super::open_error::OpenError;
use super::options::Options;

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
pub(super) fn open(options: &Options) -> Result<Locked, OpenError> {
    let path = options.path.as_path();
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
pub(super) fn beginning<const N: usize>(file: &File) -> Option<[u8; N]> {
    /// A page at a page's address: what any O_DIRECT takes.
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let mut page = Page([0; 4096]);
    let count = file.read_at(&mut page.0, 0).ok()?;
    page.0.get(..count)?.first_chunk().copied()
}

/// Whether a file has qcow2's magic number. A guest can write that into a raw disk, so that it decides nothing.
pub(super) fn begins_as_qcow2(file: &File) -> bool {
    beginning(file) == Some(*b"QFI\xfb")
}
