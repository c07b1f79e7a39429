//! The disk driver (virtio 1.2, section 5.2): requests in slots, many in flight.
//!
//! `virtio-drivers` has a driver too, with 16 descriptors; 32 requests in flight need 96.

use bitflags::bitflags;
use paravane_guest::virtio::drivers::transport::{DeviceType, Transport};
use paravane_guest::virtio::drivers::{Error, Result};

use super::discovery::DeviceTransport;
use super::error::DeviceError;
use super::queue::Queue;
use super::slots::Slots;
use super::status::check_started;

/// Bytes in a sector, the unit of all addresses (section 5.2.5).
pub const SECTOR: usize = 512;
/// Requests in flight at most.
pub const DEPTH: usize = 32;
const QUEUE: u16 = 0;
const QUEUE_SIZE: usize = 128;
/// A request's header: type, reserved, sector.
const HEADER: usize = 16;
/// The offset of a request's status byte, after its header.
const STATUS: usize = HEADER;
const CONTROL: usize = 32;
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;
/// Bytes of the range of a discard or write-zeroes request: sector, count, flags.
const RANGE: usize = 16;
/// Flag of a write-zeroes request: the host may deallocate the range.
const UNMAP: u32 = 1;
/// The status byte before the device has written it.
const UNWRITTEN: u8 = 0xff;

bitflags! {
    /// Features that the driver supports (sections 5.2.3 and 6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// The disk cannot be written.
        const READ_ONLY = 1 << 5;
        /// The disk has the flush request.
        const FLUSH = 1 << 9;
        /// The disk has the discard request.
        const DISCARD = 1 << 13;
        /// The disk has the write-zeroes request.
        const WRITE_ZEROES = 1 << 14;
        /// Notifications and interrupts are requested by index.
        const EVENT_IDX = 1 << 29;
        /// The interface of virtio 1.0 and later.
        const VERSION_1 = 1 << 32;
    }
}

/// The request in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Read(usize),
    Write(usize),
    Flush,
    /// The data is a range: a discard or write-zeroes request.
    Range,
}

/// A disk with up to [`DEPTH`] requests in flight.
pub struct Disk {
    // In this order: the transport resets the device before its memory is freed.
    transport: DeviceTransport,
    queue: Queue<QUEUE_SIZE>,
    control: Slots,
    data: Slots,
    requests: [Option<Request>; DEPTH],
    capacity: u64,
    features: Features,
}

impl Disk {
    /// The kind of device that this driver is for.
    pub const KIND: DeviceType = DeviceType::Block;

    /// Sets up and starts the device, with a buffer of `bytes` for each request: whole sectors.
    ///
    /// # Errors
    /// When memory is short. [`check`](Self::check) tells whether the device runs.
    pub fn new(mut transport: DeviceTransport, bytes: usize) -> core::result::Result<Self, DeviceError> {
        let (control, data) = (Slots::new(DEPTH, CONTROL)?, Slots::new(DEPTH, bytes)?);
        let features = transport.begin_init(Features::all());
        let capacity = transport.read_consistent(|| {
            let half = |offset| transport.read_config_space::<u32>(offset).map(u64::from);
            Ok(half(0)? | half(4)? << 32)
        })?;
        let queue = Queue::new(&mut transport, QUEUE, features.contains(Features::EVENT_IDX))?;
        transport.finish_init();
        Ok(Self { transport, queue, control, data, requests: [None; DEPTH], capacity, features })
    }

    /// Checks that the device runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self) -> core::result::Result<(), DeviceError> {
        check_started(&self.transport)
    }

    /// How many sectors there are.
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The negotiated features.
    pub const fn features(&self) -> Features {
        self.features
    }

    /// The data of a slot's last read, or of its next write.
    ///
    /// # Panics
    /// When the slot's request is in flight.
    pub fn data(&mut self, slot: usize) -> &mut [u8] {
        assert!(self.requests[slot].is_none(), "slot {slot} is in flight");
        self.data.get_mut(slot)
    }

    /// Puts a read of `bytes` from a sector on into a free slot. [`kick`](Self::kick) notifies the device.
    ///
    /// # Errors
    /// When the queue is full.
    pub fn read(&mut self, slot: usize, sector: u64, bytes: usize) -> Result<()> {
        self.put(slot, Request::Read(bytes), TYPE_IN, sector)
    }

    /// Puts a write of `bytes` to a sector on into a free slot, as [`read`](Self::read).
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn write(&mut self, slot: usize, sector: u64, bytes: usize) -> Result<()> {
        self.put(slot, Request::Write(bytes), TYPE_OUT, sector)
    }

    /// Puts a flush of all completed writes into a free slot.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn flush(&mut self, slot: usize) -> Result<()> {
        self.put(slot, Request::Flush, TYPE_FLUSH, 0)
    }

    /// Puts a discard of `count` sectors into a free slot, whose buffer has room for 16 bytes. The data of the sectors
    /// is lost.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn discard(&mut self, slot: usize, sector: u64, count: u32) -> Result<()> {
        self.range(slot, TYPE_DISCARD, (sector, count, 0))
    }

    /// Puts a write-zeroes request into a free slot, as [`discard`](Self::discard); the host may deallocate the range.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn write_zeroes(&mut self, slot: usize, sector: u64, count: u32) -> Result<()> {
        self.range(slot, TYPE_WRITE_ZEROES, (sector, count, UNMAP))
    }

    fn range(&mut self, slot: usize, kind: u32, (sector, count, flags): (u64, u32, u32)) -> Result<()> {
        let name = self.data(slot);
        name[..8].copy_from_slice(&sector.to_le_bytes());
        name[8..12].copy_from_slice(&count.to_le_bytes());
        name[12..RANGE].copy_from_slice(&flags.to_le_bytes());
        self.put(slot, Request::Range, kind, 0)
    }

    /// Notifies the device of the requests that were put, if it asked for notifications.
    pub fn kick(&mut self) {
        self.queue.kick(&mut self.transport);
    }

    /// With interrupts off: idles until `more` requests have completed that were not taken.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn wait(&mut self, more: u16) -> core::result::Result<(), DeviceError> {
        self.queue.wait(&mut self.transport, more)
    }

    /// Takes a completed request: its slot and its outcome.
    ///
    /// # Errors
    /// When the device returns a request that it does not have.
    pub fn take(&mut self) -> Result<Option<(usize, Result<()>)>> {
        let Some(slot) = self.queue.peek()? else { return Ok(None) };
        let slot = usize::from(slot);
        let request = self.requests[slot].ok_or(Error::WrongToken)?;
        // SAFETY: the same buffers that `put` made available.
        unsafe {
            self.with_buffers(slot, request, |queue, inputs, outputs| queue.take(inputs, outputs))?;
        }
        self.requests[slot] = None;
        let status = match self.control.get(slot)[STATUS] {
            0 => Ok(()),
            2 => Err(Error::Unsupported),
            _ => Err(Error::IoError),
        };
        Ok(Some((slot, status)))
    }

    /// Starts the request in `slot`, the only one in flight, and waits for its outcome.
    ///
    /// # Errors
    /// When it fails.
    pub fn finish(&mut self, slot: usize) -> core::result::Result<(), DeviceError> {
        self.kick();
        self.wait(1)?;
        match self.take()? {
            Some((done, status)) if done == slot => Ok(status?),
            _ => Err(Error::WrongToken.into()),
        }
    }

    fn put(&mut self, slot: usize, request: Request, kind: u32, sector: u64) -> Result<()> {
        assert!(self.requests[slot].is_none(), "slot {slot} is in flight");
        let control = self.control.get_mut(slot);
        control[..4].copy_from_slice(&kind.to_le_bytes());
        control[4..8].fill(0);
        control[8..HEADER].copy_from_slice(&sector.to_le_bytes());
        control[STATUS] = UNWRITTEN;
        // SAFETY: until the request is taken, `requests` bars access to the slot.
        unsafe {
            self.with_buffers(slot, request, |queue, inputs, outputs| {
                queue.put(slot as u16, inputs, outputs)
            })?
        };
        self.requests[slot] = Some(request);
        Ok(())
    }

    /// Calls `f` with the buffers of a request.
    ///
    /// # Safety
    /// `f` passes them to the queue, as the contract of its functions demands.
    unsafe fn with_buffers<R>(
        &mut self,
        slot: usize,
        request: Request,
        f: impl for<'a> FnOnce(&mut Queue<QUEUE_SIZE>, &'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
    ) -> R {
        let bytes = match request {
            Request::Read(bytes) | Request::Write(bytes) => bytes,
            Request::Range => RANGE,
            Request::Flush => 0,
        };
        // SAFETY: the parts of one slot, to which `requests` bars any other access.
        let (control, data) =
            unsafe { (self.control.detached(slot, CONTROL), self.data.detached(slot, bytes)) };
        let (header, rest) = control.split_at_mut(HEADER);
        let status = &mut rest[..1];
        match request {
            Request::Read(_) => f(&mut self.queue, &[header], &mut [data, status]),
            Request::Write(_) | Request::Range => f(&mut self.queue, &[header, data], &mut [status]),
            Request::Flush => f(&mut self.queue, &[header], &mut [status]),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Stops the device before the fields are dropped, and with them the memory of the rings.
        self.transport.queue_unset(QUEUE);
    }
}
