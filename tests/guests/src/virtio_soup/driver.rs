//! A driver of one device, which makes random use of it, right and wrong.

use paravane_guest::abi::addr::PAGE_SIZE;
use paravane_guest::abi::event::{EVTCHNOP_SEND, EvtchnSend};
use paravane_guest::abi::hypercall::{EVENT_CHANNEL_OP, PARAVANE_VIRTIO_OP};
use paravane_guest::abi::virtio::{
    VIRTIOP_ACTIVATE, VIRTIOP_CONFIG_READ, VIRTIOP_CONFIG_WRITE, VIRTIOP_DESCRIBE, VIRTIOP_RESET,
    VIRTIOP_STATUS, VirtioActivate, VirtioConfig, VirtioDescribe, VirtioDevice, VirtioEntry, VirtioQueue,
    VirtioRegion, VirtioStatus,
};
use paravane_guest::hypercall::{call, sched};
use paravane_guest::{Boot, time};

use super::arena::{self, BYTES, DEVICE_BASE, place};
use super::request::{DESCRIPTOR, INDIRECT, MOST, NEXT, request};
use crate::chance::Chance;

/// The number of queues of a device that are used.
const QUEUES: usize = 4;
/// `VIRTIO_F_VERSION_1`, `VIRTIO_F_INDIRECT_DESC`, `DEVICE_NEEDS_RESET`.
const VERSION_1: u64 = 1 << 32;
const INDIRECT_DESC: u64 = 1 << 28;
const NEEDS_RESET: u32 = 0x40;

/// A queue as the driver last set it up.
#[derive(Clone, Copy, Default)]
struct Ring {
    place: u64,
    size: u64,
    port: u32,
    /// The available index, and the used index that was last seen.
    next: u16,
    used: u16,
}

/// A device's driver.
pub struct Driver {
    id: u32,
    /// The host's description of the device.
    pub(super) entry: VirtioEntry,
    /// Counts of successful activations, offered requests and used requests.
    pub(super) activations: u64,
    pub(super) offered: u64,
    pub(super) used: u64,
    rings: [Ring; QUEUES],
    features: u64,
    active: bool,
    /// The arena's first frame, and frames that devices must not access.
    first: u64,
    table: u64,
}

impl Driver {
    /// The driver of the device with this id, if there is such a device.
    pub(super) fn new(id: u32, boot: &Boot) -> Option<Self> {
        let mut op = VirtioDescribe { device: id, ..VirtioDescribe::default() };
        if !virtio_op(VIRTIOP_DESCRIBE, &mut op) {
            return None;
        }
        let memory = boot.memory();
        let first = memory.pfn_at(arena::address()).and_then(|pfn| memory.mfn(pfn));
        let table = memory.mfn(boot.root());
        let (Some(first), Some(table)) = (first, table) else { panic!("the arena has no frames") };
        Some(Self {
            id,
            // SAFETY: initialised, and written to by the hypervisor; any bits are fine.
            entry: unsafe { (&raw const op.entry).read_volatile() },
            activations: 0,
            offered: 0,
            used: 0,
            rings: [Ring::default(); QUEUES],
            features: 0,
            active: false,
            first: first.0,
            table: table.0,
        })
    }

    /// Makes one random step with the device.
    pub(super) fn step(&mut self, chance: &mut Chance) {
        if !self.active || chance.once_in(64) {
            self.activate(chance);
        }
        match chance.below(32) {
            0 => self.reset(),
            1 | 2 => self.scribble(chance),
            3 => self.configure(chance),
            4..8 if self.needs_reset() => self.reset(),
            8 | 9 => sched::yield_now(),
            10 => {
                // The result does not matter: this only lets time pass.
                let _ = sched::poll(&[], time::now().saturating_add(100_000));
            }
            _ => self.offer(chance),
        }
    }

    fn needs_reset(&self) -> bool {
        let mut op = VirtioStatus { device: self.id, ..VirtioStatus::default() };
        virtio_op(VIRTIOP_STATUS, &mut op);
        // SAFETY: initialised, and written to by the hypervisor.
        let status = unsafe { (&raw const op.status).read_volatile() };
        status & NEEDS_RESET != 0
    }

    /// Adds what the device has used since the last count.
    pub(super) fn count_used(&mut self) {
        for ring in self.rings.iter_mut().filter(|ring| ring.size > 0) {
            let used = arena::read_u16(ring.place + 2 * PAGE_SIZE + 2);
            let new = used.wrapping_sub(ring.used);
            // A difference larger than the ring was written by this kernel itself.
            self.used += if u64::from(new) <= ring.size { u64::from(new) } else { 0 };
            ring.used = used;
        }
    }

    fn activate(&mut self, chance: &mut Chance) {
        let count = usize::from(self.entry.queues).min(QUEUES);
        let mut queues = [VirtioQueue::default(); QUEUES];
        let mut rings = [Ring::default(); QUEUES];
        for n in 0..count {
            let place = place(u64::from(self.id) * 2 + n as u64);
            let size = u64::from(self.entry.queue_size) >> chance.below(4);
            if !self.active {
                arena::clear(place, 3 * PAGE_SIZE);
            }
            rings[n] = Ring { place, size, ..Ring::default() };
            let at = DEVICE_BASE + place;
            queues[n] = VirtioQueue {
                size: chance.nearly(128, size) as u16,
                descriptors: chance.nearly(128, at),
                driver: chance.nearly(128, at + PAGE_SIZE),
                device: chance.nearly(128, at + 2 * PAGE_SIZE),
                ..VirtioQueue::default()
            };
        }
        let regions = self.regions(chance);
        let features = self.entry.features & (chance.any() | chance.any()) | VERSION_1;
        let mut op = VirtioActivate {
            device: self.id,
            kind: chance.nearly(64, self.entry.kind.into()) as u32,
            features: chance.nearly(64, features),
            queues: &raw mut queues as u64,
            regions: &raw const regions as u64,
            queue_count: chance.nearly(64, count as u64) as u32,
            region_count: chance.nearly(64, regions.len() as u64) as u32,
            ..VirtioActivate::default()
        };
        if virtio_op(VIRTIOP_ACTIVATE, &mut op) {
            (self.active, self.features, self.rings) = (true, op.features, rings);
            self.activations += 1;
            for (ring, queue) in self.rings.iter_mut().zip(&queues) {
                // SAFETY: initialised, and written to by the hypervisor.
                ring.port = unsafe { (&raw const queue.port).read_volatile() };
            }
        }
    }

    /// The two parts of the arena, nearly always.
    fn regions(&self, chance: &mut Chance) -> [VirtioRegion; 2] {
        let pages = BYTES / PAGE_SIZE;
        let cut = 1 + chance.below(pages - 1);
        let frame = if chance.once_in(64) { self.table } else { self.first };
        [(0, cut), (cut, pages - cut)].map(|(from, frames)| VirtioRegion {
            address: chance.nearly(128, DEVICE_BASE + from * PAGE_SIZE),
            mfn: chance.nearly(128, frame + from),
            frames: chance.nearly(128, frames),
        })
    }

    fn reset(&mut self) {
        self.count_used();
        if virtio_op(VIRTIOP_RESET, &mut VirtioDevice { device: self.id }) {
            self.active = false;
            self.rings = [Ring::default(); QUEUES];
        }
    }

    /// Writes random values to the queues and buffers, perhaps while the device uses them.
    fn scribble(&mut self, chance: &mut Chance) {
        self.count_used();
        let ring = self.rings[chance.below(QUEUES as u64) as usize];
        let at = match chance.below(4) {
            0 => ring.place + chance.below(ring.size.max(1)) * DESCRIPTOR + chance.below(2) * 8,
            1 => ring.place + PAGE_SIZE + chance.below(16) * 8,
            2 => ring.place + 2 * PAGE_SIZE + chance.below(16) * 8,
            _ => chance.below(BYTES / 8) * 8,
        };
        let value = chance.any();
        arena::write(at, &chance.one_of([value, value & 0x0007_0007_0000_0fff, 0]).to_le_bytes());
        self.rings.iter_mut().filter(|ring| ring.size > 0).for_each(|ring| {
            ring.used = arena::read_u16(ring.place + 2 * PAGE_SIZE + 2);
        });
    }

    fn configure(&self, chance: &mut Chance) {
        let device = chance.nearly(32, self.id.into()) as u32;
        let mut bytes = [chance.any(); 9];
        let (offset, len) = (chance.below(72), chance.below(9));
        let mut op = VirtioConfig {
            device,
            offset: chance.nearly(16, offset) as u32,
            len: chance.nearly(16, len) as u32,
            buffer: &raw mut bytes as u64,
            ..VirtioConfig::default()
        };
        // The result does not matter to this kernel: the test is whether the host survives.
        match chance.below(4) {
            0 => virtio_op(VIRTIOP_CONFIG_READ, &mut op),
            1 => virtio_op(VIRTIOP_CONFIG_WRITE, &mut op),
            2 => virtio_op(VIRTIOP_DESCRIBE, &mut VirtioDescribe { device, ..VirtioDescribe::default() }),
            _ => virtio_op(VIRTIOP_STATUS, &mut VirtioStatus { device, ..VirtioStatus::default() }),
        };
    }

    /// Makes a request available, and perhaps kicks.
    fn offer(&mut self, chance: &mut Chance) {
        self.count_used();
        let n = chance.below(u64::from(self.entry.queues).clamp(1, QUEUES as u64));
        let ring = self.rings[n as usize];
        let outstanding = u64::from(ring.next.wrapping_sub(ring.used));
        // If the ring is full, waits for the device, nearly always.
        if ring.size < MOST as u64 || (outstanding + MOST as u64 > ring.size && !chance.once_in(64)) {
            return;
        }
        let request = request(chance, self.entry.kind, n);
        let slots = ring.size / MOST as u64;
        let slot = u64::from(ring.next) % slots * MOST as u64;
        let head = self.describe(chance, ring, slot, request.buffers());
        let entry = ring.place + PAGE_SIZE + 4 + u64::from(ring.next) % ring.size * 2;
        arena::write(entry, &(chance.nearly(128, head) as u16).to_le_bytes());
        let next = ring.next.wrapping_add(1);
        let published = chance.nearly(256, next.into()) as u16;
        arena::write(ring.place + PAGE_SIZE + 2, &published.to_le_bytes());
        self.rings[n as usize].next = next;
        self.offered += 1;
        if !chance.once_in(4) {
            let mut send = EvtchnSend { port: chance.nearly(64, ring.port.into()) as u32 };
            operate(EVENT_CHANNEL_OP, EVTCHNOP_SEND, &mut send);
        }
    }

    /// Writes the descriptors of a request, from `slot` on or as an indirect table. Returns the head.
    fn describe(
        &self,
        chance: &mut Chance,
        ring: Ring,
        slot: u64,
        buffers: &[super::request::Buffer],
    ) -> u64 {
        let allowed = self.features & INDIRECT_DESC != 0 || chance.once_in(64);
        let table = (allowed && chance.once_in(4)).then(|| arena::BUFFERS + slot * DESCRIPTOR);
        let (at, base) = table.map_or((ring.place + slot * DESCRIPTOR, slot), |table| (table, 0));
        for (n, buffer) in (0u64..).zip(buffers) {
            let last = n + 1 == buffers.len() as u64;
            let flags = buffer.flags ^ if last { 0 } else { NEXT };
            // Now and then a loop, or an index out of range.
            let next = chance.nearly(128, base + n + 1);
            write_descriptor(at + n * DESCRIPTOR, buffer.address, buffer.len, flags, next);
        }
        if let Some(table) = table {
            let len = buffers.len() as u64 * DESCRIPTOR;
            let at = ring.place + slot * DESCRIPTOR;
            write_descriptor(at, DEVICE_BASE + table, chance.nearly(64, len), INDIRECT, 0);
        }
        slot
    }
}

fn write_descriptor(at: u64, address: u64, len: u64, flags: u64, next: u64) {
    arena::write(at, &address.to_le_bytes());
    arena::write(at + 8, &(len as u32).to_le_bytes());
    arena::write(at + 12, &(flags as u16).to_le_bytes());
    arena::write(at + 14, &(next as u16).to_le_bytes());
}

/// Makes an operation on devices; true if it succeeded.
fn virtio_op<T>(op: u32, argument: &mut T) -> bool {
    operate(PARAVANE_VIRTIO_OP, op, argument)
}

fn operate<T>(number: u64, op: u32, argument: &mut T) -> bool {
    // SAFETY: the structure is the one of this operation. A device may then overwrite frames of this kernel, which is
    // part of the test and harms nobody else.
    unsafe { call(number, [u64::from(op), &raw mut *argument as u64]) }.is_ok()
}
