//! `virtio_vsock_hdr`: what stands in front of the bytes in every buffer (virtio 1.2, section 5.10.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The host's address, `VMADDR_CID_HOST`.
pub const HOST_CID: u64 = 2;
/// Bytes of a header.
pub const HEADER_LEN: usize = 44;
/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type that is offered.
pub const STREAM: u16 = 1;
/// In a shutdown: the sender receives no more.
pub const NO_MORE_RECEIVING: u32 = 1;
/// In a shutdown: the sender sends no more.
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
    /// Bytes.
    pub const RW: u16 = 5;
    /// Tells the sender's buffer space.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for the other's.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// The header, as it is in memory.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Whose it is.
    pub src_cid: U64,
    /// For whom it is.
    pub dst_cid: U64,
    /// The sender's port.
    pub src_port: U32,
    /// The receiver's.
    pub dst_port: U32,
    /// Bytes that follow.
    pub len: U32,
    /// The socket's type.
    pub kind: U16,
    /// One of [`op`].
    pub op: U16,
    /// Of a shutdown.
    pub flags: U32,
    /// Bytes that the sender can hold of this connection.
    pub buf_alloc: U32,
    /// Bytes of this connection that the sender has passed on, modulo 2^32.
    pub fwd_cnt: U32,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

/// The ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The host's side.
    pub host: u32,
    /// The guest's.
    pub guest: u32,
}

impl Header {
    /// A packet for the guest.
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
    /// The connection of a packet from the guest.
    pub fn guests_ports(&self) -> Ports {
        Ports { host: self.dst_port.get(), guest: self.src_port.get() }
    }
}
