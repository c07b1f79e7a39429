//! The transmit queue: each request is one frame behind its `virtio_net_hdr` (virtio 1.2, section 5.1.6.2).
//!
//! What the driver wrote is in the cache of its CPU, and fetching one line from there takes half as long as sending a
//! frame. So several frames are taken at once, and their lines are prefetched while the first ones are sent.

use std::ops::Range;

use zerocopy::IntoBytes;

use crate::backend::net::backend::{Backend, MAX_FRAME, Sent};
use crate::backend::net::header::{HEADER_LEN, Header};
use crate::backend::net::scatter_list::ScatterList;
use crate::machine::device_memory::DeviceMemory;
use crate::virtio::{Broken, Queue};

/// The number of frames that are taken, prefetched and given back together. Giving back costs a barrier, and
/// transfers a cache line of the driver's CPU.
pub(super) const TOGETHER: usize = 16;

/// A frame that was taken.
#[derive(Default)]
struct Frame<'m> {
    head: u16,
    /// The guest memory that holds it.
    pieces: ScatterList<'m>,
    /// Whether the header has been moved from `pieces` to `header`.
    opened: bool,
    /// `None` if the driver asks for an offload that it may not use, or if the frame's length is impossible.
    header: Option<Header>,
}

/// The queue, and the frames that are being sent.
pub(super) struct Transmitter<'m> {
    pub(super) queue: Queue,
    memory: &'m DeviceMemory,
    features: u64,
    frames: [Frame<'m>; TOGETHER],
    /// The range of `frames` that has been taken and not been sent.
    ahead: Range<usize>,
    /// The violation that was found after these frames.
    offence: Option<Broken>,
    /// Whether the back end had no room for the next frame.
    stalled: bool,
    /// The frames that have been sent and are to be given back.
    sent: Vec<(u16, u32)>,
}

impl<'m> Transmitter<'m> {
    pub(super) fn new(queue: Queue, memory: &'m DeviceMemory, features: u64) -> Self {
        Self {
            queue,
            memory,
            features,
            frames: std::array::from_fn(|_| Frame::default()),
            ahead: 0..0,
            offence: None,
            stalled: false,
            sent: Vec::with_capacity(TOGETHER),
        }
    }

    /// Sends at most `most` frames. Returns whether there is more to do now.
    pub(super) fn round(&mut self, backend: &mut dyn Backend, most: usize) -> Result<bool, Broken> {
        self.queue.refuse_kicks()?;
        self.stalled = false;
        let mut more = Ok(true);
        for _ in 0..most / TOGETHER {
            more = self.send_some(backend);
            if !matches!(more, Ok(true)) {
                break;
            }
        }
        // Frames before a violation are still sent.
        backend.flush();
        self.queue.notify()?;
        more
    }

    /// Whether there is a frame, and the back end may have room for it.
    pub(super) fn has_next(&self) -> bool {
        !self.stalled && self.queue.has_next()
    }

    /// Asks for kicks before the thread sleeps. Returns whether there is a frame already.
    pub(super) fn ask_for_kicks(&mut self) -> Result<bool, Broken> {
        if self.stalled { Ok(false) } else { self.queue.ask_for_kicks() }
    }

    /// Sends at most [`TOGETHER`] frames. Returns whether there may be more that can be sent.
    fn send_some(&mut self, backend: &mut dyn Backend) -> Result<bool, Broken> {
        if self.ahead.is_empty() {
            self.take_some();
        }
        let more = self.ahead.end == TOGETHER;
        self.send_ahead(backend);
        self.queue.give_back_together(&self.sent)?;
        self.sent.clear();
        match self.offence.take_if(|_| self.ahead.is_empty()) {
            Some(offence) => Err(offence),
            None => Ok(more && !self.stalled),
        }
    }

    /// Takes frames, and begins to prefetch them.
    fn take_some(&mut self) {
        self.ahead = 0..0;
        for frame in &mut self.frames {
            match frame.take(&mut self.queue, self.memory) {
                Ok(true) => self.ahead.end += 1,
                Ok(false) => break,
                Err(offence) => {
                    self.offence = Some(offence);
                    break;
                }
            }
        }
    }

    fn send_ahead(&mut self, backend: &mut dyn Backend) {
        while let Some(frame) = self.frames.get_mut(self.ahead.clone()).and_then(<[_]>::first_mut) {
            if frame.send(self.features, backend) == Sent::Later {
                self.stalled = true;
                break;
            }
            self.sent.push((frame.head, 0));
            self.ahead.start += 1;
        }
    }
}

impl<'m> Frame<'m> {
    /// Takes the next frame of `queue`. Returns whether there was one.
    fn take(&mut self, queue: &mut Queue, memory: &'m DeviceMemory) -> Result<bool, Broken> {
        let Some(chain) = queue.take()? else { return Ok(false) };
        if !chain.writable().is_empty() {
            return Err(Broken::Request("a transmitted frame with buffers for the device to write"));
        }
        self.head = chain.head();
        self.pieces.clear();
        self.pieces.push_segments(memory, chain.readable())?;
        if self.pieces.bytes() < HEADER_LEN {
            return Err(Broken::Request("a transmitted frame without its header"));
        }
        self.opened = false;
        self.pieces.prefetch();
        Ok(true)
    }

    /// Moves the header out of the frame. This copy, which the guest cannot change, is checked and passed on.
    fn open(&mut self, features: u64) {
        let mut header = Header::default();
        self.pieces.copy_out(0, header.as_mut_bytes());
        self.pieces.skip(HEADER_LEN);
        let len = self.pieces.bytes();
        self.header = header.checked(features, len).filter(|_| (1..=MAX_FRAME).contains(&len));
        self.opened = true;
    }

    fn send(&mut self, features: u64, backend: &mut dyn Backend) -> Sent {
        if !self.opened {
            self.open(features);
        }
        self.header.map_or(Sent::Done, |header| backend.send(&header, &mut self.pieces))
    }
}
