//! A network interface (virtio 1.2, section 5.1): frames in slots, one queue each way, no offloads.

use bitflags::bitflags;
use paravane_guest::virtio::drivers::transport::{DeviceType, Transport};
use paravane_guest::virtio::drivers::{Error, Result};

use super::{DeviceError, Queue, Slots, Transported, check_started};

const RECEIVE: u16 = 0;
const SEND: u16 = 1;
/// Frames that each queue holds.
pub const DEPTH: usize = 256;
/// Bytes of a slot: the header and the longest frame without offloads, with room to spare.
const SLOT: usize = 2048;
/// `virtio_net_hdr` (section 5.1.6): all zeroes means a frame as it is.
const HEADER: usize = 12;
/// The longest frame: an Ethernet header and 1500 bytes.
pub const MAX_FRAME: usize = 1514;

bitflags! {
    /// What we can do (sections 5.1.3 and 6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const MAC = 1 << 5;
        const EVENT_IDX = 1 << 29;
        const VERSION_1 = 1 << 32;
    }
}

/// A network interface.
pub struct Net {
    // In this order: the transport resets the device before its memory goes.
    transport: Transported,
    receive: Queue<DEPTH>,
    send: Queue<DEPTH>,
    received: Slots,
    sent: Slots,
    /// Lengths of the frames that the device has, header included; 0 a free slot.
    lengths: [u16; DEPTH],
    /// Slots that are free, as a stack.
    free: [u16; DEPTH],
    free_count: usize,
    mac: [u8; 6],
}

impl Net {
    /// The kind of device that it drives.
    pub const KIND: DeviceType = DeviceType::Network;

    /// Sets up and starts the device.
    ///
    /// # Errors
    /// When memory is short. Whether the device runs is for [`check`](Self::check) to say.
    pub fn new(mut transport: Transported) -> core::result::Result<Self, DeviceError> {
        let (received, sent) = (Slots::new(DEPTH, SLOT)?, Slots::new(DEPTH, SLOT)?);
        let features = transport.begin_init(Features::all());
        // Without the feature the address is ours to choose: one that is administered locally.
        let mut mac = [0x02, 0x50, 0x56, 0x4e, 0x00, 0x01];
        if features.contains(Features::MAC) {
            mac = transport.read_consistent(|| {
                let low = transport.read_config_space::<u32>(0)?.to_le_bytes();
                let high = transport.read_config_space::<u16>(4)?.to_le_bytes();
                Ok([low[0], low[1], low[2], low[3], high[0], high[1]])
            })?;
        }
        let event_idx = features.contains(Features::EVENT_IDX);
        let receive = Queue::new(&mut transport, RECEIVE, event_idx)?;
        let send = Queue::new(&mut transport, SEND, event_idx)?;
        transport.finish_init();
        let free = core::array::from_fn(|slot| slot as u16);
        let (lengths, free_count) = ([0; DEPTH], DEPTH);
        Ok(Self { transport, receive, send, received, sent, lengths, free, free_count, mac })
    }

    /// Whether the device runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self) -> core::result::Result<(), DeviceError> {
        check_started(&self.transport)
    }

    /// Its address.
    pub const fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Gives the device all buffers for what it receives. Once, before anything is received.
    ///
    /// # Errors
    /// When the queue does not take them.
    pub fn open(&mut self) -> Result<()> {
        (0..DEPTH as u16).try_for_each(|slot| self.give(slot))?;
        self.receive.kick(&mut self.transport);
        Ok(())
    }

    fn give(&mut self, slot: u16) -> Result<()> {
        // SAFETY: the slot is used by nobody until the queue gives it back.
        unsafe {
            let buffer = self.received.detached(usize::from(slot), SLOT);
            self.receive.put(slot, &[], &mut [buffer])
        }
    }

    /// Takes the next frame and lets `f` see it; `None` when there is none. The device learns of the buffer that is
    /// free again by [`refill`](Self::refill).
    ///
    /// # Errors
    /// When the device brings what is no frame.
    pub fn receive<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let Some(slot) = self.receive.peek()? else { return Ok(None) };
        // SAFETY: the buffer that was given under this number; the device has put it back.
        let buffer = unsafe { self.received.detached(usize::from(slot), SLOT) };
        // SAFETY: as above.
        let len = unsafe { self.receive.take(&[], &mut [&mut *buffer]) }? as usize;
        let frame = buffer.get(HEADER..len).ok_or(Error::IoError)?;
        let result = f(frame);
        self.give(slot)?;
        Ok(Some(result))
    }

    /// Tells the device of buffers that are free again, if it wants to know.
    pub fn refill(&mut self) {
        self.receive.kick(&mut self.transport);
    }

    /// With interrupts off: idles until `more` frames wait to be received.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn wait_received(&mut self, more: u16) -> core::result::Result<(), DeviceError> {
        self.receive.wait(&mut self.transport, more)
    }

    /// Whether a frame waits to be received.
    ///
    /// # Errors
    /// When the device brings what it was not given.
    pub fn has_received(&self) -> Result<bool> {
        self.receive.peek().map(|slot| slot.is_some())
    }

    /// Whether a frame can be sent at once.
    pub const fn can_send(&self) -> bool {
        self.free_count != 0
    }

    /// Sends a frame of `len` bytes, which `fill` writes, and tells the device, if it wants to know. Any previous
    /// content of the buffer is a former frame's. False when there is no room: see [`reclaim`](Self::reclaim).
    ///
    /// # Errors
    /// When the frame is too long, or the queue does not take it.
    pub fn send(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<bool> {
        if len > MAX_FRAME || len == 0 {
            return Err(Error::InvalidParam);
        }
        let Some(top) = self.free_count.checked_sub(1) else { return Ok(false) };
        let slot = self.free[top];
        let total = HEADER + len;
        // SAFETY: a free slot; once it is put nobody uses it until it is reclaimed.
        let buffer = unsafe { self.sent.detached(usize::from(slot), total) };
        buffer[..HEADER].fill(0);
        fill(&mut buffer[HEADER..]);
        // SAFETY: as above.
        unsafe { self.send.put(slot, &[buffer], &mut []) }?;
        self.free_count = top;
        self.lengths[usize::from(slot)] = total as u16;
        self.send.kick(&mut self.transport);
        Ok(true)
    }

    /// Takes back what the device has sent; how many frames.
    ///
    /// # Errors
    /// When it gives back what it did not have.
    pub fn reclaim(&mut self) -> Result<usize> {
        let mut count = 0;
        while let Some(slot) = self.send.peek()? {
            let len = usize::from(self.lengths[usize::from(slot)]);
            // SAFETY: the buffer that was put under this number.
            unsafe {
                let buffer = self.sent.detached(usize::from(slot), len);
                self.send.take(&[buffer], &mut [])?;
            }
            self.lengths[usize::from(slot)] = 0;
            *self.free.get_mut(self.free_count).ok_or(Error::WrongToken)? = slot;
            self.free_count += 1;
            count += 1;
        }
        Ok(count)
    }

    /// With interrupts off: idles until `more` frames were sent that were not reclaimed.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn wait_sent(&mut self, more: u16) -> core::result::Result<(), DeviceError> {
        self.send.wait(&mut self.transport, more)
    }

    /// How many frames the device has still to send.
    pub const fn unsent(&self) -> usize {
        DEPTH - self.free_count
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // The rings' memory goes when the fields do.
        self.transport.queue_unset(RECEIVE);
    }
}
