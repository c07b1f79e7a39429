//! A split queue whose buffers have slot numbers, and whose waits are for as many completions as its user wants.

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

/// A queue of `N` descriptors. What each head descriptor stands for is remembered, so that a device can give back
/// nothing that it was not given.
pub struct Queue<const N: usize> {
    // On the heap, because it holds a copy of each descriptor: too much for the stack that a queue is made on.
    ring: Box<VirtQueue<PoolHal, N>>,
    index: u16,
    slots: Box<[Option<u16>]>,
    /// How many completions were taken since the queue began, modulo 2^16.
    taken: u16,
}

impl<const N: usize> Queue<N> {
    /// Sets it up. `event_idx`: whether that was negotiated.
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

    /// Makes buffers available to the device under a number of the caller's, without notifying it.
    ///
    /// # Errors
    /// When there are too few descriptors.
    ///
    /// # Safety
    /// Until [`take`](Self::take) has returned the number, nobody else uses the buffers.
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

    /// Which slot the device has used next.
    ///
    /// # Errors
    /// When it says that it used something that it was not given.
    pub fn peek(&self) -> Result<Option<u16>> {
        let Some(token) = self.ring.peek_used() else { return Ok(None) };
        self.slots.get(usize::from(token)).copied().flatten().ok_or(Error::WrongToken).map(Some)
    }

    /// Takes back what [`peek`](Self::peek) names; how many bytes the device wrote to it.
    ///
    /// # Errors
    /// When nothing was used.
    ///
    /// # Safety
    /// The buffers are those that were put under that number.
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

    /// Tells the device of what was put, if it wants to know.
    pub fn kick(&self, transport: &mut DeviceTransport) {
        transport.notify(self.index);
    }

    /// Whether there is no completion to be taken now, and an interrupt will come with the next.
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
