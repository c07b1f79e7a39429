//! Reads and checks requests (virtio 1.2, section 5.2.6).
//!
//! A chain without a header or without room for a status is a violation; any other wrong request gets an error status.

use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use zerocopy::{FromBytes, IntoBytes};

use super::shared::{MOST_SECTORS, Shared};
use crate::backend::disk::Buffers;
use crate::backend::disk::image::SECTOR;
use crate::backend::disk::jobs::{Job, Op};
use crate::machine::device_memory::DeviceMemory;
use crate::machine::device_memory::Segment;
use crate::virtio::{Broken, Chain};

/// The header of a request.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Clone, Copy, Debug)]
struct Header {
    kind: u32,
    _reserved: u32,
    sector: u64,
}

/// The range of a discard or write-zeroes request.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Clone, Copy, Debug)]
struct Range {
    sector: u64,
    sectors: u32,
    flags: u32,
}

/// A request's outcome (5.2.6, `status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    fn byte(self) -> u8 {
        (match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        }) as u8
    }
}

/// A request that was read.
#[derive(Debug)]
pub(super) enum Request {
    /// It is to be done.
    Job(Job),
    /// It is complete: its status, and the bytes of data that were written.
    Done(Status, u32),
}

/// Reads a request. `spare`: an allocation for the job's buffers, which is taken if there is a job.
pub(super) fn read(
    memory: &DeviceMemory,
    chain: &Chain,
    disk: &Shared,
    spare: &mut Buffers,
) -> Result<Request, Broken> {
    let header: Header =
        gather(memory, chain, 0).ok_or(Broken::Request("a block request without a header"))?;
    let header_len = size_of::<Header>() as u64;
    let room = chain.writable_len().checked_sub(1);
    let room = room.ok_or(Broken::Request("a block request without room for its status"))?;
    let data = chain.readable_len().saturating_sub(header_len);
    let refused = |status| Ok(Request::Done(status, 0));
    let sync = !disk.writeback.load(Ordering::Acquire);
    let mut job = |op, offset, len, from: &[Segment], skip| {
        spare.0.clear();
        if !from.is_empty() && memory.iovecs(from, skip, len, &mut spare.0) != len {
            // Impossible: the chain's buffers were checked to be the device's memory.
            return Err(Broken::Bug);
        }
        Ok(Request::Job(Job { op, offset, len, sync, buffers: std::mem::take(spare) }))
    };
    match header.kind {
        VIRTIO_BLK_T_IN => {
            let Some(offset) = disk.place(header.sector, room) else { return refused(Status::IoError) };
            job(Op::Read, offset, room, chain.writable(), 0)
        }
        VIRTIO_BLK_T_OUT => {
            let place = disk.place(header.sector, data).filter(|_| !disk.is_readonly());
            let Some(offset) = place else { return refused(Status::IoError) };
            job(Op::Write, offset, data, chain.readable(), header_len)
        }
        VIRTIO_BLK_T_FLUSH => job(Op::Flush, 0, 0, &[], 0),
        VIRTIO_BLK_T_GET_ID => {
            let fits = usize::try_from(room).unwrap_or(usize::MAX).min(disk.id.len());
            let part = disk.id.get(..fits).unwrap_or_default();
            let written = memory.scatter(chain.writable(), 0, part);
            Ok(Request::Done(Status::Ok, u32::try_from(written).unwrap_or(0)))
        }
        kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => {
            if disk.is_readonly() || data != size_of::<Range>() as u64 {
                return refused(Status::IoError);
            }
            let Some(range) = gather::<Range>(memory, chain, header_len) else {
                return refused(Status::IoError);
            };
            match clear(kind == VIRTIO_BLK_T_DISCARD, &range, disk) {
                Ok((op, offset, len)) => job(op, offset, len, &[], 0),
                Err(status) => refused(status),
            }
        }
        _ => refused(Status::Unsupported),
    }
}

/// The operation, offset and length of a discard or write-zeroes request.
fn clear(discard: bool, range: &Range, disk: &Shared) -> Result<(Op, u64, u64), Status> {
    let unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    if range.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0
        || discard && (unmap || disk.limits.discard.is_none())
    {
        return Err(Status::Unsupported);
    }
    let len = u64::from(range.sectors) * SECTOR;
    let offset = disk.place(range.sector, len).filter(|_| range.sectors <= MOST_SECTORS);
    let op = if discard { Op::Discard } else { Op::Zero { unmap } };
    Ok((op, offset.ok_or(Status::IoError)?, len))
}

fn gather<T: FromBytes + IntoBytes>(memory: &DeviceMemory, chain: &Chain, skip: u64) -> Option<T> {
    let mut value = T::new_zeroed();
    let bytes = value.as_mut_bytes();
    let len = bytes.len();
    (memory.gather(chain.readable(), skip, bytes) == len).then_some(value)
}

/// Writes a request's status. `data` bytes of data have been written; returns the number of bytes written from the
/// start of its buffers, without a gap.
pub(super) fn answer(memory: &DeviceMemory, chain: &Chain, status: Status, data: u32) -> u32 {
    let last = chain.writable_len().saturating_sub(1);
    memory.scatter(chain.writable(), last, &[status.byte()]);
    // After a failed read, an unknown part of the data is written.
    if u64::from(data) == last { data.saturating_add(1) } else { data }
}
