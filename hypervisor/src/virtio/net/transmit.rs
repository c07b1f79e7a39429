//! The transmit queue: each request is one frame behind its `virtio_net_hdr` (virtio 1.2, section 5.1.6.2).
//!
//! What the driver wrote is in its CPU's cache, and each line of it takes as long to come as half a frame takes to be
//! sent. So a few frames are taken ahead, and their lines are on the way while the first are sent.

use std::ops::Range;

use zerocopy::IntoBytes;

use crate::backend::net::backend::{Backend, MAX_FRAME, Sent};
use crate::backend::net::header::{HEADER_LEN, Header};
use crate::backend::net::scatter_list::ScatterList;
use crate::machine::device_memory::DeviceMemory;
use crate::virtio::{Broken, Queue};

/// Frames that are taken, fetched and given back together: each time costs a barrier, and the driver's CPU a cache line.
pub(super) const TOGETHER: usize = 16;

/// A frame that was taken.
#[derive(Default)]
struct Frame<'m> {
    head: u16,
    /// Where it lies.
    pieces: ScatterList<'m>,
    /// Its header is no longer in the pieces but here, unless the driver asks for what it may not.
    opened: bool,
    header: Option<Header>,
}

/// The queue, and the frames that are being sent.
pub(super) struct Transmitter<'m> {
    pub(super) queue: Queue,
    memory: &'m DeviceMemory,
    features: u64,
    frames: [Frame<'m>; TOGETHER],
    /// Which of `frames` are to be sent.
    ahead: Range<usize>,
    /// What the driver did wrong behind them.
    offence: Option<Broken>,
    /// The back end had no room for the next one.
    stalled: bool,
    /// Sent, and to be given back with the next ones.
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

    /// Sends what there is, up to a limit; whether there is more to be done now.
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
        // Also where the driver went wrong behind frames that were right.
        backend.flush();
        self.queue.notify()?;
        more
    }

    /// Whether there is a frame that can be tried.
    pub(super) fn has_next(&self) -> bool {
        !self.stalled && self.queue.has_next()
    }

    /// Asks for kicks before a sleep; true if there is a frame already.
    pub(super) fn ask_for_kicks(&mut self) -> Result<bool, Broken> {
        if self.stalled { Ok(false) } else { self.queue.ask_for_kicks() }
    }

    /// Sends a few; whether there may be more that can be tried.
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

    /// Takes frames, and has their bytes fetched from the driver's CPU while others are sent.
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
    /// Takes the next frame of `queue`; whether there was one.
    fn take(&mut self, queue: &mut Queue, memory: &'m DeviceMemory) -> Result<bool, Broken> {
        let Some(chain) = queue.take()? else { return Ok(false) };
        if !chain.writable().is_empty() {
            return Err(Broken::Request("a frame to be sent with buffers for the device to write"));
        }
        self.head = chain.head();
        self.pieces.clear();
        self.pieces.push_segments(memory, chain.readable())?;
        if self.pieces.bytes() < HEADER_LEN {
            return Err(Broken::Request("a frame to be sent without its header"));
        }
        self.opened = false;
        self.pieces.prefetch();
        Ok(true)
    }

    /// Takes the header off. The copy is what is checked and passed on: the guest cannot change it any more.
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
