//! qcow2 images, by imago: allocation, backing files, compressed clusters and refcounts are its business.
//!
//! imago's operations wait, so that they are done by the pool's threads; it takes many reads and writes at a time.
//! Its caches are written back by a flush. Zeroing and discarding have the image for themselves alone: both take
//! clusters from under what is being read or written, and imago looks at the rest of a cluster before it makes all
//! of it zeroes, which a write in between would be lost by.

use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::file::File as Storage;
use imago::format::drivers::FormatDriverInstance;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, Mapping, Storage as _, StorageExt, StorageOpenOptions};

use super::behind::Behind;
use super::image::{Image, Limits, Locked};
use super::{OpenError, Options, SECTOR};

/// The least that is given back to the host's file system at a time.
const HOST_BLOCK: u64 = 4096;
/// Zeroes that are written at a time where an image cannot say that clusters are zeroes.
static ZEROES: [u8; 4096] = [0; 4096];

/// A qcow2 image.
pub(super) struct Qcow2Image {
    access: RwLock<FormatAccess<Storage>>,
    bytes: u64,
    /// Bytes of a cluster; `None`: the image's version has no clusters of zeroes, and gives none back.
    cluster: Option<u64>,
    /// The last to go, after what imago has to write back; imago opens the path anew.
    _lock: Locked,
    /// Those of the files that the image names.
    _behind: Vec<Locked>,
}

impl Qcow2Image {
    /// Opens the image that `lock` is, and the files that it names.
    pub fn open(lock: Locked, options: &Options) -> Result<Self, OpenError> {
        let behind = Behind::new(&lock, options)?;
        let image = Self::opened(options, behind.clone()).map_err(|error| behind.why(error))?;
        let (bytes, cluster) = (image.size(), image.zero_granularity());
        let access = RwLock::new(FormatAccess::new(image));
        Ok(Self { access, bytes, cluster, _lock: lock, _behind: behind.locks() })
    }

    fn opened(options: &Options, behind: Behind) -> io::Result<Qcow2<Storage>> {
        let storage = StorageOpenOptions::new().direct(options.direct);
        let own = storage.clone().write(!options.readonly).filename(&options.path);
        let builder = Qcow2::<Storage>::builder(Storage::open(own)?);
        builder.storage_open_options(storage).write(!options.readonly).open(behind)
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
        let mut vector = IoVectorMut::with_capacity(buffers.len());
        for b in buffers {
            // SAFETY: the guest's memory, which the caller keeps. The guest may write there at any time, which can
            // change what imago copies and nothing else: it looks at none of these bytes.
            vector.push(unsafe { std::slice::from_raw_parts_mut(b.iov_base.cast(), b.iov_len) });
        }
        self.shared().readv(vector, offset)
    }
    fn write(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()> {
        let mut vector = IoVector::with_capacity(buffers.len());
        for b in buffers {
            // SAFETY: as above.
            vector.push(unsafe { std::slice::from_raw_parts(b.iov_base.cast(), b.iov_len) });
        }
        self.shared().writev(vector, offset)
    }
    fn flush(&self) -> io::Result<()> {
        let access = self.shared();
        access.flush()?;
        access.sync()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut access = self.alone();
        self.give_back(&access, offset, len);
        access.discard_to_any(offset, len)
    }
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if self.cluster.is_none() {
            return self.write_zeroes(offset, len);
        }
        let mut access = self.alone();
        if unmap {
            self.give_back(&access, offset, len);
            return access.discard_to_zero(offset, len);
        }
        access.write_zeroes(offset, len)
    }
}

impl Qcow2Image {
    /// Zeroes, for images that have no other way to say it.
    fn write_zeroes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let part = ZEROES.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            self.shared().write(ZEROES.get(..part).unwrap_or_default(), offset)?;
            (offset, len) = (offset.saturating_add(part as u64), len - part as u64);
        }
        Ok(())
    }
}
