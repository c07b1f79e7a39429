//! Requests: chains of buffers that are nearly what a device of each type expects.

use super::arena::{self, BUFFERS, BYTES, DEVICE_BASE};
use crate::chance::Chance;

/// Flags of descriptors (virtio 1.2, section 2.7.5).
pub(super) const NEXT: u64 = 1;
pub(super) const WRITE: u64 = 2;
pub(super) const INDIRECT: u64 = 4;
/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: u64 = 16;

/// The largest number of buffers in a request.
pub(super) const MOST: usize = 8;

/// A buffer: its device address, its length, and whether the device may write to it.
#[derive(Clone, Copy, Default)]
pub(super) struct Buffer {
    pub(super) address: u64,
    pub(super) len: u64,
    pub(super) flags: u64,
}

/// A request.
#[derive(Clone, Copy, Default)]
pub(super) struct Request {
    buffers: [Buffer; MOST],
    count: usize,
}

impl Request {
    /// Its buffers.
    pub(super) fn buffers(&self) -> &[Buffer] {
        &self.buffers[..self.count]
    }

    fn push(&mut self, buffer: Buffer) {
        if self.count < MOST {
            self.buffers[self.count] = buffer;
            self.count += 1;
        }
    }

    /// Adds a device-readable buffer with these bytes.
    fn says(&mut self, chance: &mut Chance, bytes: &[u8]) {
        let buffer = somewhere(chance, bytes.len() as u64);
        arena::write(buffer.address - DEVICE_BASE, bytes);
        self.push(buffer);
    }

    /// Adds up to four buffers, each of up to `most` bytes, in multiples of `unit`.
    fn data(&mut self, chance: &mut Chance, unit: u64, most: u64, flags: u64) {
        for _ in 0..=chance.below(4) {
            let len = unit * (1 + chance.below(most / unit));
            self.push(Buffer { flags, ..somewhere(chance, len) });
        }
    }
}

/// A buffer in the arena.
fn somewhere(chance: &mut Chance, len: u64) -> Buffer {
    Buffer { address: DEVICE_BASE + BUFFERS + chance.below(BYTES - BUFFERS - len), len, flags: 0 }
}

/// A request for a queue of a device of this type. One in eight has a fault.
pub(super) fn request(chance: &mut Chance, kind: u32, queue: u64) -> Request {
    let mut request = Request::default();
    match (kind, queue) {
        (1, 0) => request.data(chance, 1, 4096, WRITE),
        (1, _) => frame(chance, &mut request),
        (2, _) => block(chance, &mut request),
        (3, 1) => request.data(chance, 1, 256, 0),
        (19, 1) => packet(chance, &mut request),
        _ => request.data(chance, 1, 4096, WRITE),
    }
    if chance.once_in(8) {
        let n = chance.below(request.count as u64) as usize;
        let buffer = &mut request.buffers[n];
        match chance.below(3) {
            0 => buffer.address = chance.nearly(1, buffer.address),
            1 => buffer.len = chance.nearly(1, buffer.len),
            _ => buffer.flags ^= chance.one_of([WRITE, WRITE, NEXT, INDIRECT, 1 << 5]),
        }
    }
    request
}

/// A header (virtio 1.2, section 5.1.6) and a frame to the peer.
fn frame(chance: &mut Chance, request: &mut Request) {
    let mut bytes = [0; 12 + 60];
    bytes[12..18].copy_from_slice(&[2, 0, 0, 0, 0x88, 0xb5]);
    bytes[18..24].copy_from_slice(&[2, 0, 0, 0, 0x88, 0xb6]);
    bytes[24..26].copy_from_slice(&[0x88, 0xb5]);
    for _ in 0..chance.below(4) {
        bytes[chance.below(72) as usize] = chance.any() as u8;
    }
    request.says(chance, &bytes);
    if chance.once_in(2) {
        request.data(chance, 1, 1400, 0);
    }
}

/// A header, data and a status (section 5.2.6).
fn block(chance: &mut Chance, request: &mut Request) {
    let kind = chance.one_of([0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 2, 99]);
    let sector = chance.below(2048);
    let sector = chance.nearly(16, sector);
    let mut header = [0; 16];
    header[..4].copy_from_slice(&(kind as u32).to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    request.says(chance, &header);
    match kind {
        0 => request.data(chance, 512, 8192, WRITE),
        1 => request.data(chance, 512, 8192, 0),
        8 => request.push(Buffer { flags: WRITE, ..somewhere(chance, 20) }),
        11 | 13 => {
            let mut range = [0; 16];
            range[..8].copy_from_slice(&sector.to_le_bytes());
            let (sectors, flags) = (chance.below(256), chance.below(2));
            range[8..12].copy_from_slice(&(chance.nearly(8, sectors) as u32).to_le_bytes());
            range[12..].copy_from_slice(&(chance.nearly(8, flags) as u32).to_le_bytes());
            request.says(chance, &range);
        }
        _ => {}
    }
    request.push(Buffer { flags: WRITE, ..somewhere(chance, 1) });
}

/// A packet of a stream (section 5.10.6) to the host.
fn packet(chance: &mut Chance, request: &mut Request) {
    let len = chance.one_of([0, 0, 16, 1024]);
    let ports = chance.below(4) | 1024 << 32;
    let mut header = [0; 44];
    header[..8].copy_from_slice(&chance.nearly(16, 3).to_le_bytes());
    header[8..16].copy_from_slice(&chance.nearly(16, 2).to_le_bytes());
    header[16..24].copy_from_slice(&ports.to_le_bytes());
    header[24..28].copy_from_slice(&(chance.nearly(16, len) as u32).to_le_bytes());
    header[28..30].copy_from_slice(&(chance.nearly(16, 1) as u16).to_le_bytes());
    header[30..32].copy_from_slice(&(chance.below(9) as u16).to_le_bytes());
    header[36..40].copy_from_slice(&(chance.nearly(4, 4096) as u32).to_le_bytes());
    request.says(chance, &header);
    if len > 0 {
        request.push(somewhere(chance, len));
    }
}
