//! The transmit queue: each request is one frame behind its `virtio_net_hdr` (virtio 1.2, section 5.1.6.2).

use zerocopy::IntoBytes;

use super::BATCH;
use super::backend::{Backend, MAX_FRAME, Sent};
use super::header::{HEADER_LEN, Header};
use super::pieces::Pieces;
use crate::device::{Broken, Chain, DeviceMemory, Queue};

/// Frames that are given back together: each time costs a barrier, and the driver's CPU a cache line.
const TOGETHER: usize = 8;

/// The queue, and the frame that is being sent.
pub(super) struct Transmitter<'m> {
    pub(super) queue: Queue,
    memory: &'m DeviceMemory,
    features: u64,
    pieces: Pieces<'m>,
    /// For which the back end had no room.
    stalled: Option<Chain>,
    /// Sent, and to be given back with the next ones.
    sent: Vec<(u16, u32)>,
}

impl<'m> Transmitter<'m> {
    pub(super) fn new(queue: Queue, memory: &'m DeviceMemory, features: u64) -> Self {
        Self {
            queue,
            memory,
            features,
            pieces: Pieces::default(),
            stalled: None,
            sent: Vec::with_capacity(TOGETHER),
        }
    }

    /// Sends what there is, up to a limit; whether there is more to be done now.
    pub(super) fn round(&mut self, backend: &mut dyn Backend) -> Result<bool, Broken> {
        self.queue.refuse_kicks()?;
        let mut more = true;
        for _ in 0..BATCH {
            let Some(chain) = self.next()? else {
                more = false;
                break;
            };
            if self.send(&chain, backend)? == Sent::Later {
                self.stalled = Some(chain);
                more = false;
                break;
            }
            self.sent.push((chain.head(), 0));
            if self.sent.len() == TOGETHER {
                self.give_back()?;
            }
        }
        backend.flush();
        self.give_back()?;
        self.queue.notify()?;
        Ok(more)
    }

    fn give_back(&mut self) -> Result<(), Broken> {
        self.queue.give_back_together(&self.sent)?;
        self.sent.clear();
        Ok(())
    }

    /// Whether there is a frame that can be tried.
    pub(super) fn has_next(&self) -> bool {
        self.stalled.is_none() && self.queue.has_next()
    }

    /// Asks for kicks before a sleep; true if there is a frame already.
    pub(super) fn ask_for_kicks(&mut self) -> Result<bool, Broken> {
        if self.stalled.is_some() { Ok(false) } else { self.queue.ask_for_kicks() }
    }

    fn next(&mut self) -> Result<Option<Chain>, Broken> {
        self.stalled.take().map_or_else(|| self.queue.take(), |chain| Ok(Some(chain)))
    }

    fn send(&mut self, chain: &Chain, backend: &mut dyn Backend) -> Result<Sent, Broken> {
        if !chain.writable().is_empty() {
            return Err(Broken::Request("a frame to be sent with buffers for the device to write"));
        }
        self.pieces.clear();
        self.pieces.push_segments(self.memory, chain.readable())?;
        // The copy is what is checked and passed on: the guest cannot change it any more.
        let mut header = Header::default();
        if self.pieces.copy_out(0, header.as_mut_bytes()) < HEADER_LEN {
            return Err(Broken::Request("a frame to be sent without its header"));
        }
        self.pieces.skip(HEADER_LEN);
        let len = self.pieces.bytes();
        match header.checked(self.features, len) {
            Some(header) if (1..=MAX_FRAME).contains(&len) => Ok(backend.send(&header, &mut self.pieces)),
            _ => Ok(Sent::Done),
        }
    }
}
