//! The transmit queue: the guest's output (virtio 1.2, section 5.3.6).
//!
//! Requests are gathered, so that a guest that prints byte by byte costs one system call for many bytes. A request is
//! given back when the back end has taken all of it: a slow reader delays this queue only, and nothing is lost.

use std::collections::VecDeque;

use crate::backend::console::backend::Backend;
use crate::machine::device_memory::DeviceMemory;
use crate::virtio::{Broken, Chain, Queue};

/// The most bytes that one call passes to the back end.
const BUFFER: usize = 16 << 10;

/// The queue, and the output that has been taken from it.
pub(super) struct Transmitter<'m> {
    pub(super) queue: Queue,
    memory: &'m DeviceMemory,
    buffer: Box<[u8]>,
    /// The number of bytes in the buffer, and how many of them the back end has taken.
    filled: usize,
    sent: usize,
    /// The requests that end in the buffer: their heads, and where they end.
    ends: VecDeque<(u16, usize)>,
    /// A request of which only a part is in the buffer, and how many of its bytes have been copied.
    long: Option<(Chain, u64)>,
}

impl<'m> Transmitter<'m> {
    pub(super) fn new(queue: Queue, memory: &'m DeviceMemory) -> Self {
        let ends = VecDeque::with_capacity(queue.size().into());
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { queue, memory, buffer, filled: 0, sent: 0, ends, long: None }
    }

    /// Whether bytes wait for room at the back end.
    pub(super) fn is_stalled(&self) -> bool {
        self.sent < self.filled
    }

    /// Passes on output, up to a limit. Returns whether there is more to do now.
    pub(super) fn round(&mut self, backend: &mut dyn Backend) -> Result<bool, Broken> {
        self.queue.refuse_kicks()?;
        let drained = if self.is_stalled() { Ok(false) } else { self.fill() };
        // Requests before a violation are still done.
        self.flush(backend)?;
        self.queue.notify()?;
        let drained = drained?;
        Ok(!self.is_stalled() && (!drained || self.queue.ask_for_kicks()?))
    }

    /// Fills the empty buffer. Returns whether the queue is empty.
    fn fill(&mut self) -> Result<bool, Broken> {
        (self.filled, self.sent) = (0, 0);
        while self.filled < self.buffer.len() {
            let next = self.long.take().map_or_else(|| self.next(), |long| Ok(Some(long)))?;
            let Some((chain, skip)) = next else { return Ok(true) };
            let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
            let got = self.memory.gather(chain.readable(), skip, room);
            self.filled += got;
            let skip = skip + got as u64;
            if skip >= chain.readable_len() {
                self.ends.push_back((chain.head(), self.filled));
            } else if got > 0 {
                self.long = Some((chain, skip));
            } else {
                return Err(Broken::Bug);
            }
        }
        Ok(false)
    }

    fn next(&mut self) -> Result<Option<(Chain, u64)>, Broken> {
        let Some(chain) = self.queue.take()? else { return Ok(None) };
        if !chain.writable().is_empty() {
            return Err(Broken::Request("console output with buffers for the device to write"));
        }
        Ok(Some((chain, 0)))
    }

    /// Passes the buffer to the back end, and gives back the requests of which it has taken all.
    fn flush(&mut self, backend: &mut dyn Backend) -> Result<(), Broken> {
        while let Some(rest) = self.buffer.get(self.sent..self.filled).filter(|rest| !rest.is_empty()) {
            match backend.write(rest).min(rest.len()) {
                0 => break,
                count => self.sent += count,
            }
        }
        while let Some(&(head, end)) = self.ends.front().filter(|(_, end)| *end <= self.sent) {
            debug_assert!(end <= self.filled);
            self.ends.pop_front();
            self.queue.give_back(head, 0)?;
        }
        Ok(())
    }
}
