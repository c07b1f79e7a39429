//! What all queues of a disk share.

use std::sync::atomic::AtomicBool;

use crate::backend::disk::Disk;
use crate::backend::disk::image::{Limits, SECTOR};

/// Sectors that one discard or write-zeroes request covers at most: 32 MiB.
pub(super) const MOST_SECTORS: u32 = 1 << 16;
/// Bytes of an identity (5.2.6, VIRTIO_BLK_T_GET_ID).
const ID_BYTES: usize = 20;

/// What all queues of a disk share.
pub(super) struct Shared {
    pub disk: Disk,
    pub limits: Limits,
    pub sectors: u64,
    /// Cleared by a driver that wants each write on stable storage before it completes (5.2.5, `writeback`).
    pub writeback: AtomicBool,
    pub id: [u8; ID_BYTES],
}

impl Shared {
    /// `id`: the identity; by default, the name of the disk's file.
    pub fn new(disk: Disk, id: Option<&str>) -> Self {
        let (limits, sectors) = (disk.limits(), disk.bytes() / SECTOR);
        let id = identity(id.unwrap_or(disk.name()));
        Self { disk, limits, sectors, writeback: true.into(), id }
    }

    /// Whether the guest must not write.
    pub fn is_readonly(&self) -> bool {
        self.disk.is_readonly()
    }

    /// The identity as text.
    pub fn label(&self) -> String {
        let end = self.id.iter().position(|&byte| byte == 0).unwrap_or(ID_BYTES);
        String::from_utf8_lossy(self.id.get(..end).unwrap_or_default()).into_owned()
    }

    /// The byte offset of `sector`, if `len` bytes from there are whole sectors inside the disk.
    pub fn place(&self, sector: u64, len: u64) -> Option<u64> {
        let end = sector.checked_add(len / SECTOR)?;
        let inside = len.is_multiple_of(SECTOR) && end <= self.sectors;
        inside.then(|| sector.checked_mul(SECTOR)).flatten()
    }
}

/// The first bytes of a name, padded with zeroes.
fn identity(name: &str) -> [u8; ID_BYTES] {
    let mut id = [0; ID_BYTES];
    id.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte);
    id
}
