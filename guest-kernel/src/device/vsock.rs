//! The socket driver (virtio 1.2, section 5.10): packets in slots, one queue for each direction.
//!
//! The driver moves packets; the caller keeps the connections. The event queue reports a migration of the guest; it
//! is left without buffers, because this guest is never migrated.

use bitflags::bitflags;
use paravane_guest::virtio::drivers::transport::{DeviceType, Transport};
use paravane_guest::virtio::drivers::{Error, Result};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::discovery::DeviceTransport;
use super::error::DeviceError;
use super::queue::Queue;
use super::slots::Slots;
use super::status::{check_running, check_started};

const RECEIVE: u16 = 0;
const SEND: u16 = 1;
/// Packets that each queue holds.
const DEPTH: usize = 32;
/// Bytes of a packet, header included.
const SLOT: usize = 4096;
/// Bytes of a header.
const HEADER: usize = 44;
/// Bytes that a packet can carry.
pub const MAX_DATA: usize = SLOT - HEADER;
/// The host's context identifier (CID).
pub const HOST: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
const STREAM: u16 = 1;

bitflags! {
    /// Features that the driver supports (sections 5.10.3 and 6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const STREAM = 1 << 0;
        const EVENT_IDX = 1 << 29;
        const VERSION_1 = 1 << 32;
    }
}

/// Operations (section 5.10.6).
pub mod op {
    /// Requests a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts a connection.
    pub const RESPONSE: u16 = 2;
    /// Ends or refuses a connection.
    pub const RST: u16 = 3;
    /// Closes one direction, or both.
    pub const SHUTDOWN: u16 = 4;
    /// Bytes.
    pub const RW: u16 = 5;
    /// Announces the sender's buffer space.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Requests an announcement of the receiver's buffer space.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// `virtio_vsock_hdr`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default)]
pub struct Header {
    /// The sender's CID.
    pub src_cid: U64,
    /// The receiver's CID.
    pub dst_cid: U64,
    /// The sender's port.
    pub src_port: U32,
    /// The receiver's port.
    pub dst_port: U32,
    /// Bytes that follow.
    pub len: U32,
    /// The socket's type.
    pub kind: U16,
    /// One of [`op`].
    pub op: U16,
    /// Flags of a shutdown.
    pub flags: U32,
    /// Size of the sender's buffer for this connection, in bytes.
    pub buf_alloc: U32,
    /// Bytes that have left that buffer, modulo 2^32.
    pub fwd_cnt: U32,
}
const _: () = assert!(size_of::<Header>() == HEADER);

/// A socket device.
pub struct Vsock {
    // First: it resets the device before its memory is freed.
    transport: DeviceTransport,
    receive: Queue<DEPTH>,
    send: Queue<DEPTH>,
    received: Slots,
    sent: Slots,
    /// Lengths of the packets that the device has; 0 for a free slot.
    lengths: [u16; DEPTH],
    cid: u64,
}

impl Vsock {
    /// The kind of device that this driver is for.
    pub const KIND: DeviceType = DeviceType::Socket;

    /// Sets up and starts the device, and gives it all buffers for received packets.
    ///
    /// # Errors
    /// When memory is short, or the host did not start it.
    pub fn new(mut transport: DeviceTransport) -> core::result::Result<Self, DeviceError> {
        let (received, sent) = (Slots::new(DEPTH, SLOT)?, Slots::new(DEPTH, SLOT)?);
        let features = transport.begin_init(Features::all());
        let cid = transport.read_consistent(|| {
            let low: u32 = transport.read_config_space(0)?;
            let high: u32 = transport.read_config_space(4)?;
            Ok(u64::from(high) << 32 | u64::from(low))
        })?;
        let event_idx = features.contains(Features::EVENT_IDX);
        let receive = Queue::new(&mut transport, RECEIVE, event_idx)?;
        let send = Queue::new(&mut transport, SEND, event_idx)?;
        transport.finish_init();
        check_started(&transport)?;
        let mut vsock = Self { transport, receive, send, received, sent, lengths: [0; DEPTH], cid };
        (0..DEPTH as u16).try_for_each(|slot| vsock.give(slot))?;
        vsock.tell();
        Ok(vsock)
    }

    /// Our CID.
    pub const fn cid(&self) -> u64 {
        self.cid
    }

    fn give(&mut self, slot: u16) -> Result<()> {
        // SAFETY: nothing uses the slot until the queue returns it.
        unsafe {
            let buffer = self.received.detached(usize::from(slot), SLOT);
            self.receive.put(slot, &[], &mut [buffer])
        }
    }

    /// Notifies the device of packets to send and of free buffers, if it asked for notifications.
    pub fn tell(&mut self) {
        self.send.kick(&mut self.transport);
        self.receive.kick(&mut self.transport);
    }

    /// With interrupts off: whether no packet has arrived, and an interrupt will come with the next one.
    pub fn is_idle(&mut self) -> bool {
        self.receive.interrupts_next(&self.transport)
    }

    /// Takes the next packet and passes it to `f`; `None` when there is none.
    ///
    /// # Errors
    /// When the device stopped, or returned something that is not a packet.
    pub fn receive<R>(
        &mut self,
        f: impl FnOnce(&Header, &[u8]) -> R,
    ) -> core::result::Result<Option<R>, DeviceError> {
        check_running(&mut self.transport)?;
        let Some(slot) = self.receive.peek()? else { return Ok(None) };
        // SAFETY: the buffer that was put under this number; the device has returned it.
        let buffer = unsafe { self.received.detached(usize::from(slot), SLOT) };
        // SAFETY: as above.
        let len = unsafe { self.receive.take(&[], &mut [&mut *buffer]) }? as usize;
        let packet = buffer.get(..len).and_then(|packet| Header::read_from_prefix(packet).ok());
        let right = packet.filter(|(header, rest)| header.len.get() as usize == rest.len());
        let result = right.map(|(header, bytes)| f(&header, bytes));
        self.give(slot)?;
        result.ok_or(DeviceError::Failed(Error::IoError)).map(Some)
    }

    /// Whether a packet can be sent at once.
    pub fn can_send(&mut self) -> bool {
        self.reclaim().is_ok() && self.lengths.contains(&0)
    }

    /// Puts a packet into the queue, and fills in its CIDs, type and length. [`tell`](Self::tell) notifies the device.
    ///
    /// # Errors
    /// When there is no room, or more than [`MAX_DATA`] bytes.
    pub fn send(&mut self, header: Header, bytes: &[u8]) -> Result<()> {
        let slot = self.lengths.iter().position(|len| *len == 0).ok_or(Error::QueueFull)?;
        let total = HEADER + bytes.len();
        if total > SLOT {
            return Err(Error::InvalidParam);
        }
        let (src_cid, dst_cid) = (self.cid.into(), HOST.into());
        let header =
            Header { src_cid, dst_cid, kind: STREAM.into(), len: (bytes.len() as u32).into(), ..header };
        // SAFETY: a free slot; once it is put, nothing uses it until it is reclaimed.
        let buffer = unsafe { self.sent.detached(slot, total) };
        buffer[..HEADER].copy_from_slice(header.as_bytes());
        buffer[HEADER..].copy_from_slice(bytes);
        // SAFETY: as above.
        unsafe { self.send.put(slot as u16, &[buffer], &mut []) }?;
        self.lengths[slot] = total as u16;
        Ok(())
    }

    /// With interrupts off: waits until everything is sent.
    ///
    /// # Errors
    /// When the device stopped.
    pub fn drain(&mut self) -> core::result::Result<(), DeviceError> {
        self.tell();
        loop {
            self.reclaim()?;
            let left = self.lengths.iter().filter(|len| **len != 0).count();
            if left == 0 {
                return Ok(());
            }
            self.send.wait(&mut self.transport, left as u16)?;
        }
    }

    fn reclaim(&mut self) -> Result<()> {
        while let Some(slot) = self.send.peek()? {
            let len = usize::from(self.lengths[usize::from(slot)]);
            // SAFETY: the buffer that was put under this number.
            unsafe {
                let buffer = self.sent.detached(usize::from(slot), len);
                self.send.take(&[buffer], &mut [])?;
            }
            self.lengths[usize::from(slot)] = 0;
        }
        Ok(())
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // Stops the device before the fields are dropped, and with them the memory of the rings.
        self.transport.queue_unset(RECEIVE);
    }
}
