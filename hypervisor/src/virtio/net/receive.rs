//! The receive queue: empty buffers. A frame goes into one of them, or with `VIRTIO_NET_F_MRG_RXBUF` into as many as it
//! needs (virtio 1.2, section 5.1.6.4).
//!
//! The length of a frame is known only when it has been read. So buffers for the longest frame are taken from the queue
//! first, and those that a frame does not need are kept for the next one.

use std::collections::VecDeque;

use super::feature;
use crate::backend::net::backend::{Backend, MAX_FRAME, Received};
use crate::backend::net::header::{HEADER_LEN, NUM_BUFFERS_OFFSET, has, offload};
use crate::backend::net::scatter_list::{MAX_SEGMENTS, ScatterList};
use crate::machine::device_memory::DeviceMemory;
use crate::virtio::{Broken, Queue};

/// Bytes of the longest Ethernet frame without segmentation offload, including VLAN tag and header.
const ORDINARY: usize = HEADER_LEN + 1518;

/// An empty buffer that was taken from the queue.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    head: u16,
    pieces: usize,
    bytes: usize,
}

/// The queue, and the buffers that were taken from it.
pub(super) struct Receiver<'m> {
    pub(super) queue: Queue,
    memory: &'m DeviceMemory,
    merge: bool,
    /// Bytes of the longest frame, including its header.
    longest: usize,
    /// The buffers; `pieces` is the memory of all of them.
    buffers: VecDeque<Buffer>,
    pieces: ScatterList<'m>,
    used: Vec<(u16, u32)>,
}

impl<'m> Receiver<'m> {
    pub(super) fn new(queue: Queue, memory: &'m DeviceMemory, features: u64) -> Self {
        let long = has(features, offload::GUEST_TSO4) || has(features, offload::GUEST_TSO6);
        let size = usize::from(queue.size());
        Self {
            queue,
            memory,
            merge: has(features, feature::MRG_RXBUF),
            longest: if long { HEADER_LEN + MAX_FRAME } else { ORDINARY },
            buffers: VecDeque::with_capacity(size),
            pieces: ScatterList::default(),
            used: Vec::with_capacity(size),
        }
    }

    /// Whether there is a buffer for a frame.
    pub(super) fn has_room(&self) -> bool {
        !self.buffers.is_empty()
    }

    /// Whether there was no buffer, and the queue has one now.
    pub(super) fn has_next(&self) -> bool {
        !self.has_room() && self.queue.has_next()
    }

    /// Asks for kicks before the thread sleeps, if there is no buffer. Returns whether the queue has one already.
    pub(super) fn ask_for_kicks(&mut self) -> Result<bool, Broken> {
        if self.has_room() { Ok(false) } else { self.queue.ask_for_kicks() }
    }

    /// Receives at most `most` frames. Returns whether there is more to do now.
    pub(super) fn round(&mut self, backend: &mut dyn Backend, most: usize) -> Result<bool, Broken> {
        self.queue.refuse_kicks()?;
        let mut more = true;
        for _ in 0..most {
            self.refill()?;
            if self.buffers.is_empty() {
                more = false;
                break;
            }
            match backend.receive(&mut self.pieces) {
                Received::Frame(len) => self.deliver(len)?,
                Received::Lost => {}
                Received::Nothing => {
                    more = false;
                    break;
                }
            }
        }
        self.queue.notify()?;
        Ok(more)
    }

    /// Takes buffers until the longest frame fits or the queue is empty; without mergeable buffers, takes one.
    fn refill(&mut self) -> Result<(), Broken> {
        while self.buffers.is_empty()
            || self.merge && self.pieces.bytes() < self.longest && self.pieces.count() < MAX_SEGMENTS / 2
        {
            let Some(chain) = self.queue.take()? else { return Ok(()) };
            if !chain.readable().is_empty() {
                return Err(Broken::Request("a receive buffer for the device to read"));
            }
            let before = (self.pieces.count(), self.pieces.bytes());
            self.pieces.push_segments(self.memory, chain.writable())?;
            let (pieces, bytes) = (self.pieces.count() - before.0, self.pieces.bytes() - before.1);
            if bytes < HEADER_LEN {
                return Err(Broken::Request("a receive buffer too short for a header"));
            }
            self.buffers.push_back(Buffer { head: chain.head(), pieces, bytes });
        }
        Ok(())
    }

    /// Gives the driver the frame in the first `len` bytes of the buffers.
    fn deliver(&mut self, len: usize) -> Result<(), Broken> {
        self.used.clear();
        let (mut left, mut pieces) = (len, 0);
        while left > 0 {
            // A back end never reports more bytes than there was room for.
            let buffer = self.buffers.pop_front().ok_or(Broken::Bug)?;
            let here = buffer.bytes.min(left);
            self.used.push((buffer.head, u32::try_from(here).map_err(|_| Broken::Bug)?));
            left -= here;
            pieces += buffer.pieces;
        }
        let count = u16::try_from(self.used.len()).map_err(|_| Broken::Bug)?;
        self.pieces.copy_in(NUM_BUFFERS_OFFSET, &count.to_le_bytes());
        self.pieces.remove_first(pieces);
        self.queue.give_back_together(&self.used)
    }
}
