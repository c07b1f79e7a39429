//! `virtio_vsock_hdr`: the header of every packet (virtio 1.2, section 5.10.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The host's address, `VMADDR_CID_HOST`.
pub const HOST_CID: u64 = 2;
/// Bytes of a header.
pub const HEADER_LEN: usize = 44;
/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type that is offered.
pub const STREAM: u16 = 1;
/// Flag of a shutdown: its sender will not receive any more bytes.
pub const NO_MORE_RECEIVING: u32 = 1;
/// Flag of a shutdown: its sender will not send any more bytes.
pub const NO_MORE_SENDING: u32 = 2;

/// Operations (section 5.10.6).
pub mod op {
    /// Opens a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts one.
    pub const RESPONSE: u16 = 2;
    /// Ends or refuses one.
    pub const RST: u16 = 3;
    /// Closes one direction, or both.
    pub const SHUTDOWN: u16 = 4;
    /// Carries bytes.
    pub const RW: u16 = 5;
    /// Announces the sender's buffer space.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for the receiver's buffer space.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// The header, in its layout in memory.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's address.
    pub src_cid: U64,
    /// The receiver's address.
    pub dst_cid: U64,
    /// The sender's port.
    pub src_port: U32,
    /// The receiver's port.
    pub dst_port: U32,
    /// The number of bytes that follow.
    pub len: U32,
    /// The socket's type.
    pub kind: U16,
    /// One of [`op`].
    pub op: U16,
    /// Flags of a shutdown.
    pub flags: U32,
    /// The sender's buffer space for this connection, in bytes.
    pub buf_alloc: U32,
    /// The number of bytes of this connection that the sender has passed on, modulo 2^32.
    pub fwd_cnt: U32,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

/// The ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The host's port.
    pub host: u32,
    /// The guest's port.
    pub guest: u32,
}

impl Header {
    /// The header of a packet for the guest.
    pub fn to_guest(guest_cid: u64, ports: Ports, op: u16) -> Self {
        Self {
            src_cid: HOST_CID.into(),
            dst_cid: guest_cid.into(),
            src_port: ports.host.into(),
            dst_port: ports.guest.into(),
            kind: STREAM.into(),
            op: op.into(),
            ..Self::default()
        }
    }
    /// The ports of a packet from the guest.
    pub fn guests_ports(&self) -> Ports {
        Ports { host: self.dst_port.get(), guest: self.src_port.get() }
    }
}
