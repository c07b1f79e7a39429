//! qcow2 images, by imago, which does allocation, backing files, compressed clusters and refcounts.
//!
//! imago only gets images whose tables were checked (`check.rs`), and only the locked file (`storage.rs`). It never
//! gets guest memory: it inflates a compressed cluster in the memory that it reads to, and inflating reads back its
//! own output, which a guest could change meanwhile.
//!
//! Operations block, so the pool's threads do them. Many reads and writes run at the same time. A flush writes imago's
//! caches back. Zeroing and discarding exclude all other operations: both free clusters that others may be reading or
//! writing; and imago reads the rest of a cluster before it makes all of it zeroes, so that a write in between would be
//! lost.

mod check;
pub(super) mod fault;
mod header;
mod reader;
mod refcounts;
mod referenced_files;
mod snapshots_and_bitmaps;
mod storage;
mod tables;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::format::drivers::FormatDriverInstance;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, Mapping, StorageExt};

use check::check;
use reader::Reader;
use referenced_files::ReferencedFiles;
use storage::{Storage, Watch};

use super::buffers::{Aligned, advance, copy_from, copy_to, total};
use super::file::Locked;
use super::image::{Image, Limits, SECTOR};
use super::open_error::OpenError;
use super::options::Options;

/// The smallest range that is freed in the host's file system.
const HOST_BLOCK: u64 = 4096;
/// Bytes that imago reads or writes at a time, and their alignment, which every O_DIRECT accepts.
const PIECE: usize = 1 << 20;
const ALIGN: usize = 4096;
/// Zeroes to write to images that cannot mark clusters as zeroes.
static ZEROES: [u8; 4096] = [0; 4096];

/// A qcow2 image.
pub(super) struct Qcow2Image {
    access: RwLock<FormatAccess<Storage>>,
    bytes: u64,
    /// Bytes of a cluster; `None`: this version of the format cannot mark clusters as zeroes, and discards free
    /// nothing.
    cluster: Option<u64>,
    /// Buffers not in use: as many as the threads that were here at the same time.
    spare: Mutex<Vec<Aligned>>,
    watch: Arc<Watch>,
    /// Dropped after `access`, which writes imago's caches back.
    _lock: Locked,
    /// The locks of the files that the image refers to.
    _referenced: Vec<Locked>,
}

impl Qcow2Image {
    /// Opens the image in `lock`, and the files that it refers to.
    pub fn open(lock: Locked, options: &Options) -> Result<Self, OpenError> {
        let checked = check(&lock.0, options.direct, !options.readonly);
        let header = checked.map_err(|fault| OpenError::fault(&options.path, fault))?;
        let files = ReferencedFiles::new(&lock, options)?;
        let image = Self::opened(&lock, options, files.clone(), header.cluster());
        let (image, watch) = image.map_err(|error| files.why(error))?;
        let (bytes, cluster) = (image.size(), image.zero_granularity());
        let access = RwLock::new(FormatAccess::new(image));
        let spare = Mutex::default();
        Ok(Self { access, bytes, cluster, spare, watch, _lock: lock, _referenced: files.locks() })
    }

    fn opened(
        lock: &Locked,
        options: &Options,
        files: ReferencedFiles,
        cluster: u64,
    ) -> io::Result<(Qcow2<Storage>, Arc<Watch>)> {
        let storage = Storage::new(lock, &options.path)?;
        let watch = storage.watch();
        let image = Qcow2::<Storage>::builder(storage).write(!options.readonly).open(files)?;
        if !options.readonly {
            // Only now, because opening the image clears the flag that its bitmaps are up to date.
            watch.begin(Reader::new(&lock.0, options.direct)?.beginning(cluster).map_err(io::Error::other)?);
        }
        Ok((image, watch))
    }

    /// Called after each change: writes the refcounts of a new table.
    fn settle(&self, access: &FormatAccess<Storage>) -> io::Result<()> {
        if self.watch.has_new_table() { access.flush() } else { Ok(()) }
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<Storage>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<Storage>> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees a range's whole clusters in the host's file system; imago only marks them as free in the image. Called
    /// before imago does that: until the discard is done, the range may read as anything after a crash.
    fn give_back(&self, access: &FormatAccess<Storage>, offset: u64, len: u64) {
        let Some(cluster) = self.cluster else { return };
        let end = offset.saturating_add(len);
        let end = if end >= self.bytes { self.bytes } else { end - end.checked_rem(cluster).unwrap_or(0) };
        let Some(mut at) = offset.checked_next_multiple_of(cluster) else { return };
        while at < end {
            let Ok((mapping, len)) = access.get_mapping(at, end - at) else { return };
            // A cluster that is shared with snapshots or other images is not writable.
            if let Mapping::Raw { storage, offset, writable: true, .. } = mapping
                && len >= HOST_BLOCK
            {
                // If this fails, the storage is used for the next new clusters.
                let _ = storage.discard(offset, len);
            }
            if len == 0 {
                return;
            }
            at = at.saturating_add(len);
        }
    }
}

impl Image for Qcow2Image {
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn limits(&self) -> Limits {
        Limits { block: SECTOR, discard: self.cluster }
    }
    fn read(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()> {
        self.in_pieces(buffers, offset, |buffers, piece, offset| {
            self.shared().read(&mut *piece, offset)?;
            // SAFETY: guest memory, which the caller keeps mapped.
            unsafe { copy_to(buffers, piece) };
            Ok(())
        })
    }
    fn write(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()> {
        self.in_pieces(buffers, offset, |buffers, piece, offset| {
            // SAFETY: as above.
            unsafe { copy_from(buffers, piece) };
            let access = self.shared();
            access.write(&*piece, offset)?;
            self.settle(&access)
        })
    }
    fn flush(&self) -> io::Result<()> {
        let access = self.shared();
        access.flush()?;
        access.sync()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut access = self.alone();
        self.give_back(&access, offset, len);
        access.discard_to_any(offset, len)?;
        self.settle(&access)
    }
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        // imago (0.2.6) subtracts a cluster from the disk's size. For a smaller disk this overflows, and panics in
        // builds with overflow checks.
        if self.cluster.is_none_or(|cluster| self.bytes < cluster) {
            return self.write_zeroes(offset, len);
        }
        let mut access = self.alone();
        if unmap {
            self.give_back(&access, offset, len);
            access.discard_to_zero(offset, len)?;
        } else {
            access.write_zeroes(offset, len)?;
        }
        self.settle(&access)
    }
}

impl Qcow2Image {
    /// Calls `transfer` for one piece of a request after another: with the remaining buffers, memory for the piece, and
    /// its offset on the disk.
    fn in_pieces(
        &self,
        mut buffers: &mut [libc::iovec],
        mut offset: u64,
        transfer: impl Fn(&[libc::iovec], &mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memory = spare().pop().unwrap_or_else(|| Aligned::new(PIECE, ALIGN));
        let mut left = total(buffers);
        let mut result = Ok(());
        while left > 0 && result.is_ok() {
            let part = PIECE.min(usize::try_from(left).unwrap_or(usize::MAX));
            result = transfer(buffers, memory.get_mut(..part).unwrap_or_default(), offset);
            buffers = advance(buffers, part);
            offset = offset.saturating_add(part as u64);
            left -= part as u64;
        }
        spare().push(memory);
        result
    }

    /// Writes zeroes, for images that cannot mark clusters as zeroes.
    fn write_zeroes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let part = ZEROES.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            let access = self.shared();
            access.write(ZEROES.get(..part).unwrap_or_default(), offset)?;
            self.settle(&access)?;
            drop(access);
            (offset, len) = (offset.saturating_add(part as u64), len - part as u64);
        }
        Ok(())
    }
}
