//! A queue as a device uses it: requests out, used buffers in, notifications only where somebody wants them.
//!
//! The ring itself is virtio-queue's. What is added: chains are checked as they are read, buffers of one
//! request are published together, a driver cannot have more requests in work than the ring has entries, and every irregularity is
//! an error instead of an empty ring. Packed rings are not offered: virtio-queue 0.18 has none.

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

/// Where the entries of an available ring begin.
const AVAILABLE_ENTRIES: u64 = 4;
/// Where the elements of a used ring begin, and how long each is.
const USED_ELEMENTS: u64 = 4;
const USED_ELEMENT_LEN: u64 = 8;

/// Where a driver put a queue. Addresses are the device's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSetup {
    /// Entries; 0: not used.
    pub size: u16,
    /// The descriptor area.
    pub descriptors: u64,
    /// The driver area: the available ring.
    pub driver: u64,
    /// The device area: the used ring.
    pub device: u64,
}

impl QueueSetup {
    /// The ring, if it is well-formed and all of it is the device's memory.
    fn ring(&self, max: u16, memory: &DeviceMemory) -> Option<virtio_queue::Queue> {
        let mut ring = virtio_queue::Queue::new(max).ok()?;
        ring.try_set_size(self.size).ok()?;
        ring.try_set_desc_table_address(GuestAddress(self.descriptors)).ok()?;
        ring.try_set_avail_ring_address(GuestAddress(self.driver)).ok()?;
        ring.try_set_used_ring_address(GuestAddress(self.device)).ok()?;
        // The library takes an available ring at 0 for one that was never set.
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
    /// The available index at the last look.
    seen: u16,
    /// Requests given back since the last [`Queue::notify`]: the indices alone would not tell 65536 from none.
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
    /// Requests that were taken and not yet given back.
    pub fn in_work(&self) -> u16 {
        self.in_work
    }
    /// The memory that its descriptors name.
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }
    /// Becomes readable when the driver kicks: an eventfd, to be emptied by [`Queue::take_kick`].
    pub fn kick_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }
    /// Empties the kick's eventfd.
    pub fn take_kick(&self) {
        // Empty already: nothing to do.
        let _ = self.kick.read();
    }

    /// Takes the next request, if there is one.
    ///
    /// # Errors
    /// When the driver broke the rules; the queue must not be used any more.
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

    /// The driver's index. It shares its cache line with a driver that is adding to the ring: read only when all that
    /// was there at the last look is taken.
    fn available_index(&self) -> Result<u16, Broken> {
        let now = self.ring.avail_idx(self.memory.view(), Ordering::Acquire).map_err(|_| Broken::Bug)?.0;
        let ahead = now.wrapping_sub(self.ring.next_avail());
        if ahead > self.ring.size() { Err(Broken::Ahead) } else { Ok(now) }
    }

    /// A word of one of the rings, which begins at `ring`.
    fn load(&self, ring: u64, offset: u64) -> Result<u16, Broken> {
        let place = ring.checked_add(offset).ok_or(Broken::Bug)?;
        self.memory.view().load(GuestAddress(place), Ordering::Relaxed).map_err(|_| Broken::Bug)
    }

    /// Whether there is something to take, be it an error: for who looks again and again.
    pub fn has_next(&self) -> bool {
        let next = self.ring.next_avail();
        next != self.seen || self.available_index() != Ok(next)
    }

    /// Gives a request back, `written` bytes of whose buffers the device has filled.
    ///
    /// # Errors
    /// Never for a request that was taken: the rings were checked when the device was activated.
    pub fn give_back(&mut self, head: u16, written: u32) -> Result<(), Broken> {
        self.in_work = self.in_work.saturating_sub(1);
        self.given = self.given.saturating_add(1);
        self.ring.add_used(self.memory.view(), head, written).map_err(|_| Broken::Bug)
    }

    /// Gives several requests back, each with its head and the bytes written, so that the driver sees all or
    /// none: the buffers of one frame (virtio 1.2, section 5.1.6.4.1). The library publishes each as it is
    /// added.
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

    /// Interrupts the driver if anything was given back since the last call and it wants to hear of it.
    pub fn notify(&mut self) -> Result<(), Broken> {
        let given = std::mem::take(&mut self.given);
        if given != 0 && self.wants_interrupt(given)? {
            self.link.interrupt(self.index);
        }
        Ok(())
    }

    /// Whether the driver wants to hear of the last `given` used buffers. Not left to the library, which counts
    /// only what it published itself and passes over the flag.
    fn wants_interrupt(&self, given: u32) -> Result<bool, Broken> {
        let load = |offset| self.load(self.ring.avail_ring(), offset).map(u16::from_le);
        // The used index is visible before the driver's wish is read: else it could ask just too late.
        fence(Ordering::SeqCst);
        if self.ring.event_idx_enabled() {
            // Section 2.7.7: when the index passes `used_event`.
            let event = load(AVAILABLE_ENTRIES + u64::from(self.ring.size()) * 2)?;
            return Ok(u32::from(self.ring.next_used().wrapping_sub(event).wrapping_sub(1)) < given);
        }
        Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Tells the driver not to kick: the device looks by itself.
    pub fn refuse_kicks(&mut self) -> Result<(), Broken> {
        self.ring.disable_notification(self.memory.view()).map_err(|_| Broken::Bug)
    }

    /// Tells the driver to kick from now on; true if there is something to take already.
    pub fn ask_for_kicks(&mut self) -> Result<bool, Broken> {
        self.ring.enable_notification(self.memory.view()).map_err(|_| Broken::Bug)
    }
}
