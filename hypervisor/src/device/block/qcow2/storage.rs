//! An image's file, as the library reads and writes it: the file that is locked, and with a header that stays.
//!
//! Once the image is open, only three fields of the header ever change: the disk's size, and where the L1 table and the
//! refcount table are. What else is written there would be the end of the image, so it is an I/O error, whatever the
//! library believes of refcounts (an image may be changed by a program that does not ask for locks).

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use imago::file::File;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use crate::device::block::image::Locked;

/// Bytes of the header that change: `size`; and from `l1_size` to `refcount_table_clusters`.
const CHANGES: [Range<usize>; 2] = [24..32, 36..60];

/// The first cluster of an image, once it is not to change any more.
pub(super) type FirstCluster = Arc<OnceLock<Vec<u8>>>;

/// A file that an image is in, or a part of it.
#[derive(Debug)]
pub(in crate::device::block) struct Storage {
    file: File,
    path: PathBuf,
    first: FirstCluster,
}

impl Storage {
    /// The file that `lock` is, which was found at `path`.
    pub fn new(lock: &Locked, path: &Path) -> io::Result<Self> {
        let file = File::try_from(lock.0.try_clone()?)?;
        Ok(Self { file, path: path.to_owned(), first: Arc::default() })
    }

    /// Where the first cluster is put from when on it is not to change.
    pub fn first_cluster(&self) -> FirstCluster {
        self.first.clone()
    }

    /// Fails if a write of `len` bytes at `offset`, `bytes` if they are known, would spoil the header.
    fn keeps_header(&self, offset: u64, len: u64, bytes: Option<&IoVector>) -> io::Result<()> {
        let Some(first) = self.first.get().filter(|first| offset < first.len() as u64) else { return Ok(()) };
        let spoilt = || io::Error::other("a write into the header of the image was refused");
        // Around the page cache, whole blocks are written: all of the header, and what comes after it.
        let len = usize::try_from(len).map_err(|_| spoilt())?;
        let mut new = vec![0; len];
        bytes.ok_or_else(spoilt)?.copy_into_slice(&mut new);
        let old = usize::try_from(offset).ok().and_then(|at| first.get(at..)).unwrap_or_default();
        let changes = |n| CHANGES.iter().any(|range| range.contains(&n));
        let same = |(n, (new, old))| new == old || usize::try_from(offset).is_ok_and(|at| changes(at + n));
        if new.iter().zip(old).enumerate().all(same) { Ok(()) } else { Err(spoilt()) }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl imago::Storage for Storage {
    fn mem_align(&self) -> usize {
        self.file.mem_align()
    }
    fn req_align(&self) -> usize {
        self.file.req_align()
    }
    fn zero_align(&self) -> usize {
        self.file.zero_align()
    }
    fn discard_align(&self) -> usize {
        self.file.discard_align()
    }
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        // An absolute path stays what it is.
        let folder = self.path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(folder.join(relative))
    }
    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }
    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the caller's promises, which are the same: alignment and bounds as this file wants them.
        unsafe { self.file.pure_readv(bufv, offset) }
    }
    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        self.keeps_header(offset, bufv.len(), Some(&bufv))?;
        // SAFETY: as above.
        unsafe { self.file.pure_writev(bufv, offset) }
    }
    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.keeps_header(offset, length, None)?;
        // SAFETY: as above.
        unsafe { self.file.pure_write_zeroes(offset, length) }
    }
    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.keeps_header(offset, length, None)?;
        // SAFETY: as above.
        unsafe { self.file.pure_write_allocated_zeroes(offset, length) }
    }
    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.keeps_header(offset, length, None)?;
        // SAFETY: as above.
        unsafe { self.file.pure_discard(offset, length) }
    }
    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.file.invalidate_cache() }
    }
    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.file.get_storage_helper()
    }
}
