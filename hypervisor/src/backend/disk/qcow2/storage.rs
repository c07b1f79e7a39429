//! An image's file for the library: the locked file, with its writes checked while the image is open.
//!
//! While an image is open, only three things in its header change: the disk's size, and the offsets and sizes of the L1
//! table and of the refcount table. Any other write to the header would destroy the image and is an I/O error. It could
//! happen if a program that ignores locks changes the image, so that the library's refcounts are wrong.
//!
//! The library (0.2.6) enters a new L2 table into the L1 table, and a new refcount block into the refcount table,
//! while the refcount of the new table is still in its cache. If the program is killed before the next flush, the image
//! has tables in clusters that are counted as free. So code that writes to an image calls [`Watch::has_new_table`]
//! afterwards, and has the caches written back.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use imago::file::File;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use super::header::{be32, be64};
use crate::backend::disk::file::Locked;
use crate::text::printable;

/// Bytes of the header that may change: `size`; and from `l1_size` to `refcount_table_clusters`.
const CHANGES: [Range<usize>; 2] = [24..32, 36..60];

/// Checks the writes to an image.
#[derive(Debug, Default)]
pub(super) struct Watch {
    known: RwLock<Option<Known>>,
    new_table: AtomicBool,
}

#[derive(Debug)]
struct Known {
    /// The first cluster.
    first: Vec<u8>,
    /// Ranges of the L1 table and of the refcount table.
    tables: [Range<u64>; 2],
}

impl Known {
    fn new(first: Vec<u8>) -> Self {
        let (l1, reftable) = (be64(&first, 40), be64(&first, 48));
        let cluster = 1u64.checked_shl(be32(&first, 20)).unwrap_or(0);
        let l1_end = l1.saturating_add(u64::from(be32(&first, 36)) * 8);
        let reftable_end = reftable.saturating_add(u64::from(be32(&first, 56)).saturating_mul(cluster));
        Self { first, tables: [l1..l1_end, reftable..reftable_end] }
    }
}

impl Watch {
    /// Checks writes from now on; `first` is the image's first cluster.
    pub fn begin(&self, first: Vec<u8>) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(Known::new(first));
    }

    /// Whether a table has been entered into another one since the last call.
    pub fn has_new_table(&self) -> bool {
        self.new_table.load(Ordering::Acquire) && self.new_table.swap(false, Ordering::AcqRel)
    }

    /// Checks a write of `bytes`; `None`: of zeroes.
    ///
    /// # Errors
    /// When it would destroy the header.
    fn write(&self, offset: u64, len: u64, bytes: Option<&IoVector>) -> io::Result<()> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Known { first, tables }) = &*known else { return Ok(()) };
        let end = offset.saturating_add(len);
        if tables.iter().any(|table| offset < table.end && table.start < end) {
            self.new_table.store(true, Ordering::Release);
        }
        if offset >= first.len() as u64 {
            return Ok(());
        }
        let spoilt = || io::Error::other("a write into the header of the image was refused");
        // With direct I/O, whole blocks are written: all of the header and the bytes after it.
        let mut new = vec![0; usize::try_from(len).map_err(|_| spoilt())?];
        bytes.ok_or_else(spoilt)?.copy_into_slice(&mut new);
        let mut changed = first.clone();
        let old = usize::try_from(offset).ok().and_then(|at| changed.get_mut(at..));
        old.unwrap_or_default().iter_mut().zip(&new).for_each(|(old, new)| *old = *new);
        let same = |(n, (new, old))| new == old || CHANGES.iter().any(|range| range.contains(&n));
        if !changed.iter().zip(first).enumerate().all(same) {
            return Err(spoilt());
        }
        drop(known);
        self.begin(changed);
        Ok(())
    }
}

/// The file of an image, or of a part of it.
#[derive(Debug)]
pub(super) struct Storage {
    file: File,
    path: PathBuf,
    watch: Arc<Watch>,
}

impl Storage {
    /// The locked file, which was opened by `path`.
    pub fn new(lock: &Locked, path: &Path) -> io::Result<Self> {
        let file = File::try_from(lock.0.try_clone()?)?;
        Ok(Self { file, path: path.to_owned(), watch: Arc::default() })
    }

    /// The check of its writes.
    pub(super) fn watch(&self) -> Arc<Watch> {
        self.watch.clone()
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        printable::path(&self.path).fmt(f)
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
        // `join` keeps an absolute path.
        let folder = self.path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(folder.join(relative))
    }
    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }
    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the caller promises the same: this file's alignment and bounds.
        unsafe { self.file.pure_readv(bufv, offset) }
    }
    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        self.watch.write(offset, bufv.len(), Some(&bufv))?;
        // SAFETY: as above.
        unsafe { self.file.pure_writev(bufv, offset) }
    }
    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.watch.write(offset, length, None)?;
        // SAFETY: as above.
        unsafe { self.file.pure_write_zeroes(offset, length) }
    }
    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.watch.write(offset, length, None)?;
        // SAFETY: as above.
        unsafe { self.file.pure_write_allocated_zeroes(offset, length) }
    }
    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.watch.write(offset, length, None)?;
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
