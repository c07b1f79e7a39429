//! A queue as a device uses it: takes requests, gives used buffers back, and notifies only if the driver asks for it.
//!
//! The ring is virtio-queue's. Added here: chains are checked as they are read; buffers of one frame are published
//! together; a driver cannot have more requests under way than the ring has entries; and every violation is an error
//! instead of an empty ring. Packed rings are not offered, because virtio-queue 0.18 has none.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::chain;
use super::chain::Chain;
use super::link::Link;
use super::violation::Broken;
use super::worker;
use crate::machine::device_memory::DeviceMemory;

/// Offset of the entries in an available ring.
const AVAILABLE_ENTRIES: u64 = 4;
/// Offset of the elements in a used ring, and their length.
const USED_ELEMENTS: u64 = 4;
const USED_ELEMENT_LEN: u64 = 8;

/// A queue's size and device addresses, as the driver has set them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of entries; 0 if the queue is not used.
    pub size: u16,
    /// The descriptor area.
    pub descriptors: u64,
    /// The driver area: the available ring.
    pub driver: u64,
    /// The device area: the used ring.
    pub device: u64,
}

impl QueueSetup {
    /// The ring, if it is well-formed and inside the device's memory.
    fn ring(&self, max: u16, memory: &DeviceMemory) -> Option<virtio_queue::Queue> {
        let mut ring = virtio_queue::Queue::new(max).ok()?;
        ring.try_set_size(self.size).ok()?;
        ring.try_set_desc_table_address(GuestAddress(self.descriptors)).ok()?;
        ring.try_set_avail_ring_address(GuestAddress(self.driver)).ok()?;
        ring.try_set_used_ring_address(GuestAddress(self.device)).ok()?;
        // The library treats an available ring at address 0 as not set.
        if self.driver == 0 {
            return None;
        }
        ring.set_ready(true);
        ring.is_valid(memory.view()).then_some(ring)
    }
}

/// An active queue.
#[derive(Debug)]
pub struct Queue {
    index: u16,
    ring: virtio_queue::Queue,
    in_work: u16,
    /// The available index, as last read.
    seen: u16,
    /// Requests given back since the last [`Queue::notify`]. The indices cannot distinguish 65536 from 0.
    given: u32,
    memory: DeviceMemory,
    indirect: bool,
    kick: EventFd,
    link: Arc<Link>,
}

impl Queue {
    /// The queue that `setup` describes; `None` if it is malformed or outside `memory`.
    pub(super) fn new(
        index: u16,
        setup: &QueueSetup,
        max: u16,
        features: u64,
        memory: &DeviceMemory,
        (kick, link): (EventFd, Arc<Link>),
    ) -> Option<Self> {
        let mut ring = setup.ring(max, memory)?;
        ring.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        let indirect = features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0;
        Some(Self {
            index,
            ring,
            in_work: 0,
            seen: 0,
            given: 0,
            memory: memory.clone(),
            indirect,
            kick,
            link,
        })
    }

    /// Whether `setup` is well-formed and lies in `memory`.
    pub fn is_possible(setup: &QueueSetup, max: u16, memory: &DeviceMemory) -> bool {
        setup.ring(max, memory).is_some()
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }
    /// Entries.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }
    /// Requests that were taken and not given back.
    pub fn in_work(&self) -> u16 {
        self.in_work
    }
    /// The memory that descriptors may refer to.
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }
    /// An eventfd that becomes readable when the driver kicks, until [`Queue::take_kick`].
    pub fn kick_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }
    /// Clears the kick's eventfd.
    pub fn take_kick(&self) {
        // An error means that it is clear.
        let _ = self.kick.read();
    }

    /// Takes the next request, if there is one.
    ///
    /// # Errors
    /// When the driver has violated the protocol; the queue must not be used any more.
    pub fn take(&mut self) -> Result<Option<Chain>, Broken> {
        worker::look_at(self.index);
        let next = self.ring.next_avail();
        if next == self.seen {
            self.seen = self.available_index()?;
            if next == self.seen {
                return Ok(None);
            }
        }
        let entry = u64::from(next.checked_rem(self.ring.size()).ok_or(Broken::Bug)?);
        let head = u16::from_le(self.load(self.ring.avail_ring(), AVAILABLE_ENTRIES + entry * 2)?);
        self.ring.set_next_avail(next.wrapping_add(1));
        if self.in_work >= self.ring.size() {
            return Err(Broken::Ahead);
        }
        if head >= self.ring.size() {
            return Err(Broken::Descriptor(head));
        }
        let (table, size) = (self.ring.desc_table(), self.ring.size());
        let chain = chain::read(&self.memory, table, size, head, self.indirect)?;
        self.in_work += 1;
        Ok(Some(chain))
    }

    /// The driver's index. A driver that is adding requests writes to the same cache line, so it is only read when all
    /// known requests are taken.
    fn available_index(&self) -> Result<u16, Broken> {
        let now = self.ring.avail_idx(self.memory.view(), Ordering::Acquire).map_err(|_| Broken::Bug)?.0;
        let ahead = now.wrapping_sub(self.ring.next_avail());
        if ahead > self.ring.size() { Err(Broken::Ahead) } else { Ok(now) }
    }

    /// A word of the ring that begins at `ring`.
    fn load(&self, ring: u64, offset: u64) -> Result<u16, Broken> {
        let place = ring.checked_add(offset).ok_or(Broken::Bug)?;
        self.memory.view().load(GuestAddress(place), Ordering::Relaxed).map_err(|_| Broken::Bug)
    }

    /// Whether [`Queue::take`] would return anything, an error included. Cheap, meant for busy polling.
    pub fn has_next(&self) -> bool {
        let next = self.ring.next_avail();
        next != self.seen || self.available_index() != Ok(next)
    }

    /// Gives a request back; `written`: the bytes that the device has written to its buffers.
    ///
    /// # Errors
    /// Never for a request that was taken: the rings were checked when the device was activated.
    pub fn give_back(&mut self, head: u16, written: u32) -> Result<(), Broken> {
        self.in_work = self.in_work.saturating_sub(1);
        self.given = self.given.saturating_add(1);
        self.memory.wrote();
        self.ring.add_used(self.memory.view(), head, written).map_err(|_| Broken::Bug)
    }

    /// Gives several requests back, each with its head and the bytes written, so that the driver sees all or none: the
    /// buffers of one frame (virtio 1.2, section 5.1.6.4.1). The library would publish each separately.
    ///
    /// # Errors
    /// As [`Queue::give_back`].
    pub fn give_back_together(&mut self, used: &[(u16, u32)]) -> Result<(), Broken> {
        let Some((&(last, written), others)) = used.split_last() else { return Ok(()) };
        let (mut next, size) = (self.ring.next_used(), self.ring.size());
        for &(head, written) in others {
            let at = USED_ELEMENTS + u64::from(next.checked_rem(size).ok_or(Broken::Bug)?) * USED_ELEMENT_LEN;
            let element = u64::from(written) << 32 | u64::from(head);
            let place = self.ring.used_ring().checked_add(at).ok_or(Broken::Bug)?;
            self.memory.view().write_obj(element.to_le(), GuestAddress(place)).map_err(|_| Broken::Bug)?;
            self.in_work = self.in_work.saturating_sub(1);
            self.given = self.given.saturating_add(1);
            next = next.wrapping_add(1);
        }
        self.ring.set_next_used(next);
        self.give_back(last, written)
    }

    /// Interrupts the driver if requests were given back since the last call and it asks for an interrupt.
    pub fn notify(&mut self) -> Result<(), Broken> {
        let given = std::mem::take(&mut self.given);
        if given != 0 && self.wants_interrupt(given)? {
            self.link.interrupt(self.index);
        }
        Ok(())
    }

    /// Whether the driver asks for an interrupt for the last `given` used buffers. Not left to the library, which only
    /// counts buffers that it has published itself, and ignores the flag.
    fn wants_interrupt(&self, given: u32) -> Result<bool, Broken> {
        let load = |offset| self.load(self.ring.avail_ring(), offset).map(u16::from_le);
        // The used index must be visible before `used_event` or the flag is read; otherwise a wake-up could be lost.
        fence(Ordering::SeqCst);
        if self.ring.event_idx_enabled() {
            // Section 2.7.7: interrupt when the index passes `used_event`.
            let event = load(AVAILABLE_ENTRIES + u64::from(self.ring.size()) * 2)?;
            return Ok(u32::from(self.ring.next_used().wrapping_sub(event).wrapping_sub(1)) < given);
        }
        Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Tells the driver not to kick, because the device polls.
    pub fn refuse_kicks(&mut self) -> Result<(), Broken> {
        self.ring.disable_notification(self.memory.view()).map_err(|_| Broken::Bug)
    }

    /// Tells the driver to kick from now on; returns whether there is a request already.
    pub fn ask_for_kicks(&mut self) -> Result<bool, Broken> {
        self.ring.enable_notification(self.memory.view()).map_err(|_| Broken::Bug)
    }
}
