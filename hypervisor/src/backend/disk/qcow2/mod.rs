//! qcow2 images, by imago: allocation, backing files, compressed clusters and refcounts are its business.
//!
//! imago is given only images whose tables were checked (`check.rs`), only the file that is locked (`storage.rs`),
//! and never the guest's memory: it inflates a compressed cluster in the memory that it reads to, and inflating looks
//! back at what it has written, which a guest could be changing.
//!
//! Its operations wait, so that they are done by the pool's threads; it takes many reads and writes at a time. Its
//! caches are written back by a flush. Zeroing and discarding have the image for themselves alone: both take clusters
//! from under what is being read or written, and imago looks at the rest of a cluster before it makes all of it
//! zeroes, which a write in between would be lost by.

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

/// The least that is given back to the host's file system at a time.
const HOST_BLOCK: u64 = 4096;
/// Bytes that imago gets at a time, at an address that any O_DIRECT takes.
const PIECE: usize = 1 << 20;
const ALIGN: usize = 4096;
/// Zeroes that are written at a time where an image cannot say that clusters are zeroes.
static ZEROES: [u8; 4096] = [0; 4096];

/// A qcow2 image.
pub(super) struct Qcow2Image {
    access: RwLock<FormatAccess<Storage>>,
    bytes: u64,
    /// Bytes of a cluster; `None`: the image's version has no clusters of zeroes, and gives none back.
    cluster: Option<u64>,
    /// Memory for what is read and written: as many as there were threads at a time.
    spare: Mutex<Vec<Aligned>>,
    watch: Arc<Watch>,
    /// The last to go, after what imago has to write back.
    _lock: Locked,
    /// Those of the files that the image names.
    _referenced: Vec<Locked>,
}

impl Qcow2Image {
    /// Opens the image that `lock` is, and the files that it names.
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
            // Only now: imago has cleared what says that bitmaps are up to date.
            watch.begin(Reader::new(&lock.0, options.direct)?.beginning(cluster).map_err(io::Error::other)?);
        }
        Ok((image, watch))
    }

    /// After a change: has refcounts written that a new table needs.
    fn settle(&self, access: &FormatAccess<Storage>) -> io::Result<()> {
        if self.watch.has_new_table() { access.flush() } else { Ok(()) }
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<Storage>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<Storage>> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the room of a range's whole clusters back to the host's file system. imago only notes that they are
    /// free. To be called before it does: as long as the range is to be discarded, it does not matter what it
    /// reads as after a crash.
    fn give_back(&self, access: &FormatAccess<Storage>, offset: u64, len: u64) {
        let Some(cluster) = self.cluster else { return };
        let end = offset.saturating_add(len);
        let end = if end >= self.bytes { self.bytes } else { end - end.checked_rem(cluster).unwrap_or(0) };
        let Some(mut at) = offset.checked_next_multiple_of(cluster) else { return };
        while at < end {
            let Ok((mapping, len)) = access.get_mapping(at, end - at) else { return };
            // What other images or snapshots share cannot be written to.
            if let Mapping::Raw { storage, offset, writable: true, .. } = mapping
                && len >= HOST_BLOCK
            {
                // Without it the room is used for the next new clusters.
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
            // SAFETY: the guest's memory, which the caller keeps.
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
        // imago (0.2.6) subtracts a cluster from the end of a disk that is shorter than one: an overflow, and a panic
        // where overflows are checked for.
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
    /// Calls `transfer` for one piece of a request after the other, with the buffers from there on, memory of ours for
    /// the piece, and where it is on the disk.
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

    /// Zeroes, for images that have no other way to say it.
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
