//! The block device (virtio 1.2, section 5.2) on a [`Disk`].
//!
//! | File | What is in it |
//! | --- | --- |
//! | `request.rs` | reading and checking a request |
//! | `shared.rs` | what all queues of a disk share |
//! | `worker.rs` | the loop of one queue: requests out, jobs under way, statuses back |
//!
//! A write is complete once the host has the data; a flush is complete once all data of completed writes is on stable
//! storage. For a driver without flushes, a write is complete only when its data is on stable storage. Errors of the
//! host are statuses of requests.

mod request;
mod shared;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use zerocopy::IntoBytes;

use super::{Activation, Device, Info, Link, MAX_QUEUES, Workers};
use crate::backend::disk::Disk;
use crate::backend::disk::image::{Limits, SECTOR};
use shared::{MOST_SECTORS, Shared};

/// Entries of a queue at most.
const QUEUE_SIZE: u16 = 256;
/// Data buffers of a request at most, beside one for the header and one for the status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The physical block size that drivers are told: 4 KiB, the block size of most file systems.
const PHYSICAL: u64 = 4096;
/// A disk as a virtio device.
pub struct Block {
    disk: Arc<Shared>,
    queues: u16,
}

/// An impossible number of queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a disk has 1 to {MAX_QUEUES} queues, not {0}")]
pub struct BadQueueCount(u16);

impl Block {
    /// A device for `disk` with 1 to [`MAX_QUEUES`] queues. The guest can read the first 20 bytes of `id` as the disk's
    /// identity; by default, that is the name of the disk's file.
    ///
    /// # Errors
    /// When `queues` is out of range.
    pub fn new(disk: Disk, queues: u16, id: Option<&str>) -> Result<Self, BadQueueCount> {
        if queues == 0 || usize::from(queues) > MAX_QUEUES {
            return Err(BadQueueCount(queues));
        }
        Ok(Self { disk: Arc::new(Shared::new(disk, id)), queues })
    }
}

/// The configuration space (5.2.4), up to the fields for write-zeroes.
#[repr(C, packed)]
#[derive(IntoBytes, zerocopy::Immutable, Clone, Copy, Debug, Default)]
struct Config {
    capacity: u64,
    size_max: u32,
    seg_max: u32,
    geometry: [u8; 4],
    blk_size: u32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: u16,
    opt_io_size: u32,
    writeback: u8,
    _unused: u8,
    num_queues: u16,
    max_discard_sectors: u32,
    max_discard_seg: u32,
    discard_sector_alignment: u32,
    max_write_zeroes_sectors: u32,
    max_write_zeroes_seg: u32,
    write_zeroes_may_unmap: u8,
    _unused1: [u8; 3],
}

const _: () = assert!(size_of::<Config>() == 60);
/// Offset of `writeback`.
const WRITEBACK: usize = std::mem::offset_of!(Config, writeback);

impl Block {
    /// Sets whether a write may complete before its data is on stable storage. Applies to requests that are taken
    /// later.
    fn set_writeback(&self, link: &Link, on: bool) {
        if self.disk.writeback.swap(on, Ordering::AcqRel) != on {
            link.change_config(|config| {
                config.iter_mut().skip(WRITEBACK).take(1).for_each(|byte| *byte = on.into())
            });
        }
    }
}

impl Device for Block {
    fn info(&self) -> Info {
        let bit = |bit: u32, offered: bool| u64::from(offered) << bit;
        let writable = !self.disk.is_readonly();
        let features = bit(VIRTIO_BLK_F_SEG_MAX, true)
            | bit(VIRTIO_BLK_F_BLK_SIZE, true)
            | bit(VIRTIO_BLK_F_TOPOLOGY, true)
            | bit(VIRTIO_BLK_F_FLUSH, true)
            | bit(VIRTIO_BLK_F_CONFIG_WCE, true)
            | bit(VIRTIO_BLK_F_RO, !writable)
            | bit(VIRTIO_BLK_F_MQ, self.queues > 1)
            | bit(VIRTIO_BLK_F_DISCARD, writable && self.disk.limits.discard.is_some())
            | bit(VIRTIO_BLK_F_WRITE_ZEROES, writable);
        Info { kind: VIRTIO_ID_BLOCK, features, queues: self.queues, queue_size: QUEUE_SIZE }
    }

    fn label(&self) -> Option<String> {
        Some(self.disk.label())
    }

    fn config(&self) -> Vec<u8> {
        let Limits { block, discard } = self.disk.limits;
        // Both are powers of two; `block` is at most the largest qcow2 cluster, 2 MiB.
        let blocks = (PHYSICAL / block).max(1);
        let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX);
        let config = Config {
            capacity: self.disk.sectors,
            seg_max: SEG_MAX,
            blk_size: u32::try_from(block).unwrap_or(u32::MAX),
            physical_block_exp: blocks.ilog2() as u8,
            min_io_size: u16::try_from(blocks).unwrap_or(1),
            writeback: 1,
            num_queues: self.queues,
            max_discard_sectors: MOST_SECTORS,
            max_discard_seg: 1,
            discard_sector_alignment: sectors(discard.unwrap_or(block)),
            max_write_zeroes_sectors: MOST_SECTORS,
            max_write_zeroes_seg: 1,
            write_zeroes_may_unmap: u8::from(discard.is_some()),
            ..Config::default()
        };
        config.as_bytes().to_vec()
    }

    /// A driver may change `writeback` and nothing else.
    fn write_config(&mut self, link: &Link, offset: usize, bytes: &[u8]) {
        let byte = WRITEBACK.checked_sub(offset).and_then(|at| bytes.get(at));
        if let Some(&byte) = byte {
            self.set_writeback(link, byte & 1 != 0);
        }
    }

    fn activate(&mut self, mut activation: Activation, workers: &mut Workers) -> io::Result<()> {
        let accepted = |bit: u32| activation.features & 1 << bit != 0;
        let before = self.disk.writeback.load(Ordering::Acquire);
        // A driver with CONFIG_WCE may have cleared it already (3.1.1, step 7). Without flushes there is no write-back
        // cache (5.2.5.2).
        let kept = before || !accepted(VIRTIO_BLK_F_CONFIG_WCE);
        self.set_writeback(&activation.link, accepted(VIRTIO_BLK_F_FLUSH) && kept);
        let mut queues = (0..usize::from(self.queues)).filter_map(|index| activation.queue(index));
        let spawned = queues.try_for_each(|queue| {
            let disk = Arc::clone(&self.disk);
            workers.spawn("pv-block", move |stop| worker::run(queue, stop, &disk))
        });
        drop(queues);
        spawned.inspect_err(|_| self.set_writeback(&activation.link, before))
    }

    fn reset(&mut self, link: &Link) {
        self.set_writeback(link, true);
    }
}
