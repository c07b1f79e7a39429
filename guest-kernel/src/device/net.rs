//! The network driver (virtio 1.2, section 5.1): frames in slots, one queue for each direction, no offloads.

use bitflags::bitflags;
use paravane_guest::virtio::drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use paravane_guest::virtio::drivers::{Error, Result};

use super::discovery::DeviceTransport;
use super::error::DeviceError;
use super::queue::Queue;
use super::slots::Slots;
use super::status::check_started;

const RECEIVE: u16 = 0;
const SEND: u16 = 1;
/// Frames that each queue holds.
pub const DEPTH: usize = 256;
/// Bytes of a slot: the header and the longest frame without offloads, with room to spare.
const SLOT: usize = 2048;
/// `virtio_net_hdr` (section 5.1.6): all zeroes for a frame without offloads.
const HEADER: usize = 12;
/// The offset of `status` in the configuration space (section 5.1.4), and its bit for a link that is up.
const STATUS: usize = 6;
const LINK_UP: u16 = 1;
/// The longest frame: an Ethernet header and 1500 bytes.
pub const MAX_FRAME: usize = 1514;

bitflags! {
    /// Features that the driver supports (sections 5.1.3 and 6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const MAC = 1 << 5;
        const STATUS = 1 << 16;
        const EVENT_IDX = 1 << 29;
        const VERSION_1 = 1 << 32;
    }
}

/// A network interface.
pub struct Net {
    // First: it resets the device before its memory is freed.
    transport: DeviceTransport,
    receiver: Receiver,
    sender: Sender,
    mac: [u8; 6],
    /// Whether the device reports the state of its link.
    has_status: bool,
}

/// The receiving half.
pub struct Receiver {
    queue: Queue<DEPTH>,
    slots: Slots,
}

/// The sending half.
pub struct Sender {
    queue: Queue<DEPTH>,
    slots: Slots,
    /// Lengths of the frames that the device has, header included; 0 for a free slot.
    lengths: [u16; DEPTH],
    /// Free slots, as a stack.
    free: [u16; DEPTH],
    free_count: usize,
}

impl Net {
    /// The kind of device that this driver is for.
    pub const KIND: DeviceType = DeviceType::Network;

    /// Sets up and starts the device.
    ///
    /// # Errors
    /// When memory is short. [`check`](Self::check) tells whether the device runs.
    pub fn new(mut transport: DeviceTransport) -> core::result::Result<Self, DeviceError> {
        let (received, sent) = (Slots::new(DEPTH, SLOT)?, Slots::new(DEPTH, SLOT)?);
        let features = transport.begin_init(Features::all());
        // Without the feature the driver chooses the address: a locally administered one.
        let mut mac = [0x02, 0x50, 0x56, 0x4e, 0x00, 0x01];
        if features.contains(Features::MAC) {
            mac = transport.read_consistent(|| {
                let low = transport.read_config_space::<u32>(0)?.to_le_bytes();
                let high = transport.read_config_space::<u16>(4)?.to_le_bytes();
                Ok([low[0], low[1], low[2], low[3], high[0], high[1]])
            })?;
        }
        let event_idx = features.contains(Features::EVENT_IDX);
        let receiver = Receiver { queue: Queue::new(&mut transport, RECEIVE, event_idx)?, slots: received };
        let sender = Sender {
            queue: Queue::new(&mut transport, SEND, event_idx)?,
            slots: sent,
            lengths: [0; DEPTH],
            free: core::array::from_fn(|slot| slot as u16),
            free_count: DEPTH,
        };
        transport.finish_init();
        Ok(Self { transport, receiver, sender, mac, has_status: features.contains(Features::STATUS) })
    }

    /// Checks that the device runs.
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

    /// Whether the link is up. A device that does not report it counts as up.
    pub fn link_is_up(&self) -> bool {
        let status = || self.transport.read_consistent(|| self.transport.read_config_space::<u16>(STATUS));
        !self.has_status || status().is_ok_and(|status| status & LINK_UP != 0)
    }

    /// Whether the link is up, after an interrupt for a change of the configuration; `None` if there was no such
    /// interrupt.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn link_change(&mut self) -> core::result::Result<Option<bool>, DeviceError> {
        if !self.transport.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) {
            return Ok(None);
        }
        if self.transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return Err(DeviceError::NeedsReset);
        }
        Ok(Some(self.link_is_up()))
    }

    /// With interrupts off: waits until all frames are sent.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn drain(&mut self) -> core::result::Result<(), DeviceError> {
        self.reclaim()?;
        while self.unsent() != 0 {
            self.wait_sent(self.unsent() as u16)?;
            self.reclaim()?;
        }
        Ok(())
    }

    /// Both halves, for a caller that works on both at a time and notifies the device afterwards, by
    /// [`tell`](Self::tell).
    pub const fn halves(&mut self) -> (&mut Receiver, &mut Sender) {
        (&mut self.receiver, &mut self.sender)
    }

    /// Notifies the device of frames to send and of free buffers, if it asked for notifications.
    pub fn tell(&mut self) {
        self.sender.queue.kick(&mut self.transport);
        self.refill();
    }

    /// Gives the device all buffers for received frames. Called once, before the first receive.
    ///
    /// # Errors
    /// When the queue does not take them.
    pub fn open(&mut self) -> Result<()> {
        (0..DEPTH as u16).try_for_each(|slot| self.receiver.give(slot))?;
        self.refill();
        Ok(())
    }

    /// As [`Receiver::receive`].
    ///
    /// # Errors
    /// As for [`Receiver::receive`].
    pub fn receive<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        self.receiver.receive(f)
    }

    /// Notifies the device of free buffers, if it asked for notifications.
    pub fn refill(&mut self) {
        self.receiver.queue.kick(&mut self.transport);
    }

    /// With interrupts off: idles until `more` frames wait to be received.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn wait_received(&mut self, more: u16) -> core::result::Result<(), DeviceError> {
        self.receiver.queue.wait(&mut self.transport, more)
    }

    /// With interrupts off: whether no frame has arrived, and an interrupt will come with the next one.
    pub fn is_idle(&mut self) -> bool {
        self.receiver.queue.interrupts_next(&self.transport)
    }

    /// Sends a frame, as [`Sender::send`], and notifies the device, if it asked for notifications.
    ///
    /// # Errors
    /// As for [`Sender::send`].
    pub fn send(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        self.sender.send(len, fill)?;
        self.sender.queue.kick(&mut self.transport);
        Ok(())
    }

    /// Whether a frame can be sent at once.
    pub const fn can_send(&self) -> bool {
        self.sender.can_send()
    }

    /// As [`Sender::reclaim`].
    ///
    /// # Errors
    /// As for [`Sender::reclaim`].
    pub fn reclaim(&mut self) -> Result<usize> {
        self.sender.reclaim()
    }

    /// With interrupts off: idles until `more` sent frames can be reclaimed.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn wait_sent(&mut self, more: u16) -> core::result::Result<(), DeviceError> {
        self.sender.queue.wait(&mut self.transport, more)
    }

    /// How many frames the device has not sent yet.
    pub const fn unsent(&self) -> usize {
        DEPTH - self.sender.free_count
    }
}

impl Receiver {
    fn give(&mut self, slot: u16) -> Result<()> {
        // SAFETY: nothing uses the slot until the queue returns it.
        unsafe {
            let buffer = self.slots.detached(usize::from(slot), SLOT);
            self.queue.put(slot, &[], &mut [buffer])
        }
    }

    /// Whether a frame has arrived; false if the device returns a buffer that it does not have.
    pub fn has_frame(&self) -> bool {
        self.queue.peek().is_ok_and(|slot| slot.is_some())
    }

    /// Takes the next frame and passes it to `f`; `None` when there is none. The buffer becomes available to the
    /// device again; [`Net::refill`] notifies the device of it.
    ///
    /// # Errors
    /// When the device returns something too short to be a frame.
    pub fn receive<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let Some(slot) = self.queue.peek()? else { return Ok(None) };
        // SAFETY: the buffer that was given under this number; the device has put it back.
        let buffer = unsafe { self.slots.detached(usize::from(slot), SLOT) };
        // SAFETY: as above.
        let len = unsafe { self.queue.take(&[], &mut [&mut *buffer]) }? as usize;
        let result = buffer.get(HEADER..len).map(f);
        self.give(slot)?;
        result.ok_or(Error::IoError).map(Some)
    }
}

impl Sender {
    /// Whether a frame can be sent at once.
    pub const fn can_send(&self) -> bool {
        self.free_count != 0
    }

    /// Puts a frame of `len` bytes into the queue. `fill` writes it; the buffer holds an earlier frame before.
    /// [`Net::tell`] notifies the device.
    ///
    /// # Errors
    /// When there is no room (see [`can_send`](Self::can_send)), or the frame is too long or empty.
    pub fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        if !(1..=MAX_FRAME).contains(&len) {
            return Err(Error::InvalidParam);
        }
        let top = self.free_count.checked_sub(1).ok_or(Error::QueueFull)?;
        let slot = self.free[top];
        let total = HEADER + len;
        // SAFETY: a free slot; once it is put, nothing uses it until it is reclaimed.
        let buffer = unsafe { self.slots.detached(usize::from(slot), total) };
        buffer[..HEADER].fill(0);
        let result = fill(&mut buffer[HEADER..]);
        // SAFETY: as above.
        unsafe { self.queue.put(slot, &[buffer], &mut []) }?;
        self.free_count = top;
        self.lengths[usize::from(slot)] = total as u16;
        Ok(result)
    }

    /// Takes back the buffers of sent frames; returns how many.
    ///
    /// # Errors
    /// When the device returns a buffer that it does not have.
    pub fn reclaim(&mut self) -> Result<usize> {
        let mut count = 0;
        while let Some(slot) = self.queue.peek()? {
            let len = usize::from(self.lengths[usize::from(slot)]);
            // SAFETY: the buffer that was put under this number.
            unsafe {
                let buffer = self.slots.detached(usize::from(slot), len);
                self.queue.take(&[buffer], &mut [])?;
            }
            self.lengths[usize::from(slot)] = 0;
            *self.free.get_mut(self.free_count).ok_or(Error::WrongToken)? = slot;
            self.free_count += 1;
            count += 1;
        }
        Ok(count)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Stops the device before the fields are dropped, and with them the memory of the rings.
        self.transport.queue_unset(RECEIVE);
    }
}
