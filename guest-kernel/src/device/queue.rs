//! A split queue whose buffers have slot numbers, with waits for a chosen number of completions.

use paravane_guest::virtio::PoolHal;
use paravane_guest::virtio::drivers::queue::VirtQueue;
use paravane_guest::virtio::drivers::transport::Transport;
use paravane_guest::virtio::drivers::{Error, Result};

use alloc::boxed::Box;
use alloc::vec;

use paravane_guest::virtio::Interrupts;

use super::discovery::DeviceTransport;
use super::error::DeviceError;
use super::status::check_running;
use crate::machine::{Current, Machine};

/// A queue of `N` descriptors. It remembers the slot of each head descriptor, so that a device cannot return a buffer
/// that it does not have.
pub struct Queue<const N: usize> {
    // On the heap, because it holds a copy of each descriptor, which is too much for the stack.
    ring: Box<VirtQueue<PoolHal, N>>,
    index: u16,
    slots: Box<[Option<u16>]>,
    /// How many completions were taken since the queue was set up, modulo 2^16.
    taken: u16,
}

impl<const N: usize> Queue<N> {
    /// Sets the queue up. `event_idx`: whether `VIRTIO_F_EVENT_IDX` was negotiated.
    ///
    /// # Errors
    /// When the device has no such queue, or memory is short.
    pub fn new(transport: &mut impl Transport, index: u16, event_idx: bool) -> Result<Self> {
        let ring = Box::new(VirtQueue::new(transport, index, false, event_idx)?);
        Ok(Self { ring, index, slots: vec![None; N].into_boxed_slice(), taken: 0 })
    }

    /// How many descriptors are free.
    pub fn free(&self) -> usize {
        self.ring.available_desc()
    }

    /// Makes buffers available to the device under a slot number of the caller's choice, without notifying the device.
    ///
    /// # Errors
    /// When there are too few descriptors.
    ///
    /// # Safety
    /// Nothing else uses the buffers until they were taken back by [`take`](Self::take).
    pub unsafe fn put<'a>(
        &mut self,
        slot: u16,
        inputs: &'a [&'a [u8]],
        outputs: &'a mut [&'a mut [u8]],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        let token = unsafe { self.ring.add(inputs, outputs) }?;
        self.slots[usize::from(token) % N] = Some(slot);
        Ok(())
    }

    /// The slot of the next completion.
    ///
    /// # Errors
    /// When the device returns a descriptor that it does not have.
    pub fn peek(&self) -> Result<Option<u16>> {
        let Some(token) = self.ring.peek_used() else { return Ok(None) };
        self.slots.get(usize::from(token)).copied().flatten().ok_or(Error::WrongToken).map(Some)
    }

    /// Takes back the slot that [`peek`](Self::peek) names; returns how many bytes the device wrote to it.
    ///
    /// # Errors
    /// When there is no completion.
    ///
    /// # Safety
    /// The buffers are those that were put under that slot number.
    pub unsafe fn take<'a>(
        &mut self,
        inputs: &'a [&'a [u8]],
        outputs: &'a mut [&'a mut [u8]],
    ) -> Result<u32> {
        let token = self.ring.peek_used().ok_or(Error::NotReady)?;
        // SAFETY: the caller's promise.
        let len = unsafe { self.ring.pop_used(token, inputs, outputs) }?;
        self.slots[usize::from(token) % N] = None;
        self.taken = self.taken.wrapping_add(1);
        Ok(len)
    }

    /// Notifies the device of the buffers that were put, if it asked for notifications.
    pub fn kick(&self, transport: &mut DeviceTransport) {
        transport.notify(self.index);
    }

    /// Whether there is no completion now, and an interrupt will come with the next one.
    pub fn interrupts_next(&self, transport: &DeviceTransport) -> bool {
        transport.interrupt_after(self.index, 1, self.taken)
    }

    /// With interrupts off: idles until `more` completions wait to be taken.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn wait(&self, transport: &mut DeviceTransport, more: u16) -> core::result::Result<(), DeviceError> {
        while transport.interrupt_after(self.index, more, self.taken) {
            Current::wait();
            check_running(transport)?;
        }
        Ok(())
    }
}
