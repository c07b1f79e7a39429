//! qcow2 images, by imago: allocation, backing files, compressed clusters and refcounts are its business.
//!
//! imago's operations wait, so that they are done by the pool's threads; it takes many at a time. Its caches are
//! written back by a flush. Giving room back needs the image for itself alone, so that discards are not offered.

use std::fs::File;
use std::io;

use imago::file::File as Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, StorageOpenOptions};

use super::Options;
use super::image::Image;

/// A qcow2 image.
pub(super) struct Qcow2Image {
    access: FormatAccess<Storage>,
    /// Holds the lock: imago opens the path anew.
    _lock: File,
}

impl Qcow2Image {
    /// Opens the image that `lock` is, and its backing files, which are only read.
    pub fn open(lock: File, options: &Options) -> io::Result<Self> {
        let storage = StorageOpenOptions::new().direct(options.direct);
        let image = Qcow2::<Storage>::builder_path(&options.path)
            .storage_open_options(storage)
            .write(!options.readonly)
            .open(PermissiveImplicitOpenGate::default())?;
        Ok(Self { access: FormatAccess::new(image), _lock: lock })
    }
}

impl Image for Qcow2Image {
    fn bytes(&self) -> u64 {
        self.access.size()
    }
    fn discards(&self) -> bool {
        false
    }
    fn read(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()> {
        let mut vector = IoVectorMut::with_capacity(buffers.len());
        for b in buffers {
            // SAFETY: the guest's memory, which the caller keeps. The guest may write there at any time, which can
            // change what imago copies and nothing else: it looks at none of these bytes.
            vector.push(unsafe { std::slice::from_raw_parts_mut(b.iov_base.cast(), b.iov_len) });
        }
        self.access.readv(vector, offset)
    }
    fn write(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()> {
        let mut vector = IoVector::with_capacity(buffers.len());
        for b in buffers {
            // SAFETY: as above.
            vector.push(unsafe { std::slice::from_raw_parts(b.iov_base.cast(), b.iov_len) });
        }
        self.access.writev(vector, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.access.flush()?;
        self.access.sync()
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn zero(&self, offset: u64, len: u64, _: bool) -> io::Result<()> {
        self.access.write_zeroes(offset, len)
    }
}
