//! Descriptor chains, read once and checked as they are read.
//!
//! virtio-queue's iterator silently ends a chain at a wrong descriptor, so that a driver's mistake looks like a shorter
//! request. Here every violation of virtio 1.2, section 2.7.5 is an error. Each descriptor is read exactly once: later
//! changes by the driver have no effect.

use smallvec::SmallVec;
use virtio_bindings::bindings::virtio_ring::VRING_DESC_ALIGN_SIZE;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::violation::Broken;
use crate::machine::device_memory::{DeviceMemory, Segment};

/// Buffers that a chain holds without allocating: those of a block request with six pages, a header and a status.
const USUAL: usize = 8;

/// One request: its buffers in order. Empty ones are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    segments: SmallVec<[Segment; USUAL]>,
    readable: usize,
}

impl Chain {
    /// The number by which the chain is given back.
    pub fn head(&self) -> u16 {
        self.head
    }
    /// Buffers that the device may read.
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }
    /// Buffers that the device may write.
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }
    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        total(self.readable())
    }
    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        total(self.writable())
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.len)).sum()
}

/// A descriptor table.
#[derive(Clone, Copy)]
struct Table {
    address: u64,
    entries: u16,
}

impl Table {
    fn read(self, memory: &DeviceMemory, index: u16) -> Result<Descriptor, Broken> {
        let offset = u64::from(index) * u64::from(VRING_DESC_ALIGN_SIZE);
        let address = self.address.checked_add(offset).filter(|_| index < self.entries);
        let address = address.ok_or(Broken::Descriptor(index))?;
        let len = u64::from(VRING_DESC_ALIGN_SIZE);
        memory.view().read_obj(GuestAddress(address)).map_err(|_| Broken::Address { address, len })
    }

    /// The table that an indirect descriptor refers to.
    fn indirect(desc: &Descriptor) -> Result<Self, Broken> {
        let len = desc.len();
        let entries = u16::try_from(len / VRING_DESC_ALIGN_SIZE).ok();
        let entries = entries.filter(|&n| n > 0 && len.is_multiple_of(VRING_DESC_ALIGN_SIZE));
        Ok(Self { address: desc.addr().0, entries: entries.ok_or(Broken::IndirectLength(len))? })
    }
}

/// Reads the chain that begins with descriptor `head` of a queue of `size` entries at `table`.
pub(super) fn read(
    memory: &DeviceMemory,
    table: u64,
    size: u16,
    head: u16,
    indirect: bool,
) -> Result<Chain, Broken> {
    let mut chain = Chain { head, segments: SmallVec::new(), readable: 0 };
    let mut table = Table { address: table, entries: size };
    // An indirect table may be larger than the queue; the chain in it may not be longer (2.7.5.3.1).
    let (mut index, mut inside, mut left, mut bytes) = (head, false, size, 0u32);
    loop {
        let desc = table.read(memory, index)?;
        if desc.refers_to_indirect_table() {
            if inside || !indirect || desc.has_next() {
                return Err(Broken::Indirect);
            }
            (table, index, inside) = (Table::indirect(&desc)?, 0, true);
            continue;
        }
        left = left.checked_sub(1).ok_or(Broken::TooLong)?;
        bytes = bytes.checked_add(desc.len()).ok_or(Broken::TooMuch)?;
        chain.push(memory, &desc)?;
        if !desc.has_next() {
            return Ok(chain);
        }
        index = desc.next();
    }
}

impl Chain {
    fn push(&mut self, memory: &DeviceMemory, desc: &Descriptor) -> Result<(), Broken> {
        let segment = Segment { address: desc.addr().0, len: desc.len() };
        if segment.len == 0 {
            return Ok(());
        }
        if !memory.contains(segment.address, segment.len.into()) {
            return Err(Broken::Address { address: segment.address, len: segment.len.into() });
        }
        if !desc.is_write_only() {
            if self.readable < self.segments.len() {
                return Err(Broken::Order);
            }
            self.readable += 1;
        } else {
            memory.lend(segment);
        }
        self.segments.push(segment);
        Ok(())
    }
}
