//! The interface of an image: operations that wait until they are done.

use std::io;

/// The unit of a disk's size and of its requests, in bytes (virtio 1.2, section 5.2.4; Xen's blkif.h has the same).
pub(crate) const SECTOR: u64 = 512;

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
