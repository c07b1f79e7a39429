//! The interface of an image: operations that wait until they are done.

#![forbid(unsafe_code)]

use std::io;

/// The unit of a disk's size and of its requests, in bytes (virtio 1.2, section 5.2.4; Xen's blkif.h has the same).
pub(crate) const SECTOR: u64 = 512;

/// The units of an image, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The block size that guests are told to use; smaller requests work, but cost more.
    pub block: u64,
    /// The smallest range that a discard frees; `None`: discards free nothing.
    pub discard: Option<u64>,
}

/// The bytes of a disk. Buffers are guest memory, which the caller keeps mapped. An operation is done completely, or
/// returns an error.
pub(crate) trait Image: Send + Sync {
    /// The size in bytes.
    fn bytes(&self) -> u64;
    /// Its units.
    fn limits(&self) -> Limits;
    /// Fills the buffers.
    fn read(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()>;
    /// Writes the buffers.
    fn write(&self, buffers: &mut [libc::iovec], offset: u64) -> io::Result<()>;
    /// Puts everything that was written on stable storage.
    fn flush(&self) -> io::Result<()>;
    /// Discards a range: its content is undefined afterwards.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range zeroes; `unmap`: its storage may be freed.
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}
