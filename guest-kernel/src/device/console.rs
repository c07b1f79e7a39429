//! The console driver (virtio 1.2, section 5.3): text in slots, one queue for each direction.
//!
//! `virtio-drivers` has a driver too, which notifies and waits for every byte. Here a write takes as few buffers as
//! it fits into and one notification, and waits only for room.

use bitflags::bitflags;
use paravane_guest::virtio::drivers::transport::{DeviceType, Transport};
use paravane_guest::virtio::drivers::{Error, Result};

use super::discovery::DeviceTransport;
use super::error::DeviceError;
use super::queue::Queue;
use super::slots::Slots;
use super::status::{check_running, check_started};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Buffers of each queue.
const DEPTH: usize = 16;
/// Bytes of a buffer for typed bytes, and of one for output.
const TYPED: usize = 256;
const PRINTED: usize = 4096;
/// The offset of the emergency-write field in the configuration space (section 5.3.4).
const EMERGENCY: usize = 8;

bitflags! {
    /// Features that the driver supports (sections 5.3.3 and 6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const SIZE = 1 << 0;
        const EMERGENCY_WRITE = 1 << 2;
        const EVENT_IDX = 1 << 29;
        const VERSION_1 = 1 << 32;
    }
}

/// A buffer of typed bytes that is being read.
#[derive(Clone, Copy)]
struct Typed {
    slot: u16,
    at: usize,
    len: usize,
}

/// A console.
pub struct Console {
    // First: it resets the device before its memory is freed.
    transport: DeviceTransport,
    receive: Queue<DEPTH>,
    typed: Slots,
    reading: Option<Typed>,
    transmit: Queue<DEPTH>,
    printed: Slots,
    /// Lengths of the buffers that the device has; 0 for a free slot.
    lengths: [usize; DEPTH],
    features: Features,
}

impl Console {
    /// The kind of device that this driver is for.
    pub const KIND: DeviceType = DeviceType::Console;

    /// Sets up and starts the device.
    ///
    /// # Errors
    /// When memory is short. [`check`](Self::check) tells whether the device runs.
    pub fn new(mut transport: DeviceTransport) -> core::result::Result<Self, DeviceError> {
        let (typed, printed) = (Slots::new(DEPTH, TYPED)?, Slots::new(DEPTH, PRINTED)?);
        let features = transport.begin_init(Features::all());
        let event_idx = features.contains(Features::EVENT_IDX);
        let receive = Queue::new(&mut transport, RECEIVE, event_idx)?;
        let transmit = Queue::new(&mut transport, TRANSMIT, event_idx)?;
        transport.finish_init();
        let lengths = [0; DEPTH];
        Ok(Self { transport, receive, typed, reading: None, transmit, printed, lengths, features })
    }

    /// Checks that the device runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self) -> core::result::Result<(), DeviceError> {
        check_started(&self.transport)
    }

    /// Gives the device all buffers for typed bytes. Called once, before the first read.
    ///
    /// # Errors
    /// When the queue does not take them.
    pub fn listen(&mut self) -> Result<()> {
        (0..DEPTH as u16).try_for_each(|slot| self.give(slot))?;
        self.receive.kick(&mut self.transport);
        Ok(())
    }

    /// Columns and rows, if the other end is a terminal.
    pub fn size(&self) -> Option<(u16, u16)> {
        let read = || {
            let field = |offset| self.transport.read_config_space::<u16>(offset);
            Ok((field(0)?, field(2)?))
        };
        self.features.contains(Features::SIZE).then(|| self.transport.read_consistent(read).ok())?
    }

    /// With interrupts off: prints; returns when the device has all of it, and idles while there is no room.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn write(&mut self, bytes: &[u8]) -> core::result::Result<(), DeviceError> {
        for part in bytes.chunks(PRINTED) {
            self.reclaim()?;
            while self.transmit.free() == 0 {
                self.transmit.kick(&mut self.transport);
                self.transmit.wait(&mut self.transport, 1)?;
                self.reclaim()?;
            }
            let slot = self.lengths.iter().position(|len| *len == 0).ok_or(Error::QueueFull)?;
            self.printed.get_mut(slot)[..part.len()].copy_from_slice(part);
            // SAFETY: the slot's length bars other uses of the slot until the device has returned it.
            unsafe { self.transmit.put(slot as u16, &[self.printed.detached(slot, part.len())], &mut []) }?;
            self.lengths[slot] = part.len();
        }
        self.transmit.kick(&mut self.transport);
        Ok(())
    }

    /// How many buffers the device has not printed yet.
    ///
    /// # Errors
    /// When it gives back what it was not given.
    pub fn unprinted(&mut self) -> Result<usize> {
        self.reclaim()?;
        Ok(self.lengths.iter().filter(|len| **len != 0).count())
    }

    /// With interrupts off: idles until everything has been printed.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn drain(&mut self) -> core::result::Result<(), DeviceError> {
        let unprinted = self.unprinted()?;
        self.transmit.wait(&mut self.transport, unprinted as u16)?;
        Ok(self.reclaim()?)
    }

    /// With interrupts off: whether nothing was printed since [`unprinted`](Self::unprinted), and an interrupt will
    /// come when something is.
    pub fn is_stuck(&self) -> bool {
        self.transmit.interrupts_next(&self.transport)
    }

    fn reclaim(&mut self) -> Result<()> {
        while let Some(slot) = self.transmit.peek()? {
            let slot = usize::from(slot);
            let len = *self.lengths.get(slot).ok_or(Error::WrongToken)?;
            // SAFETY: the buffer that `write` put under this number.
            unsafe { self.transmit.take(&[self.printed.detached(slot, len)], &mut []) }?;
            self.lengths[slot] = 0;
        }
        Ok(())
    }

    fn give(&mut self, slot: u16) -> Result<()> {
        // SAFETY: nothing uses the slot until the queue returns it.
        unsafe { self.receive.put(slot, &[], &mut [self.typed.detached(usize::from(slot), TYPED)]) }
    }

    /// Takes the next typed byte, if there is one.
    ///
    /// # Errors
    /// When the device gives back what it was not given.
    pub fn read(&mut self) -> Result<Option<u8>> {
        loop {
            if let Some(typed) = &mut self.reading {
                let at = typed.at;
                typed.at += 1;
                if at < typed.len {
                    return Ok(self.typed.get(usize::from(typed.slot)).get(at).copied());
                }
                let slot = typed.slot;
                self.reading = None;
                self.give(slot)?;
                self.receive.kick(&mut self.transport);
            }
            let Some(slot) = self.receive.peek()? else { return Ok(None) };
            // SAFETY: the buffer that `give` put under this number.
            let len =
                unsafe { self.receive.take(&[], &mut [self.typed.detached(usize::from(slot), TYPED)]) }?;
            self.reading = Some(Typed { slot, at: 0, len: TYPED.min(len as usize) });
        }
    }

    /// With interrupts off: whether no byte can be read now, and an interrupt will come with the next one.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn is_idle(&mut self) -> core::result::Result<bool, DeviceError> {
        check_running(&mut self.transport)?;
        Ok(self.reading.is_none() && self.receive.interrupts_next(&self.transport))
    }

    /// Prints without a queue, one byte at a time. For a panic, in which nothing else can be relied on.
    pub fn print_in_emergency(&mut self, bytes: &[u8]) {
        if self.features.contains(Features::EMERGENCY_WRITE) {
            for &byte in bytes {
                // There is nothing left to report a failure to.
                let _ = self.transport.write_config_space(EMERGENCY, u32::from(byte));
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Stops the device before the fields are dropped, and with them the memory of the rings.
        self.transport.queue_unset(TRANSMIT);
    }
}
