//! `virtio_net_hdr`: the header in front of each frame (virtio 1.2, section 5.1.6; Linux uses it for TAP interfaces,
//! too).
//!
//! The guest's header asks the host's kernel for offloads. It is therefore checked here against the negotiated
//! features and against the frame, on a copy that the guest cannot change. A wrong header is not an error of the
//! ring: the frame is dropped, as a network card would drop it.

#![forbid(unsafe_code)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a header; with `VIRTIO_F_VERSION_1` it always has `num_buffers`.
pub const HEADER_LEN: usize = 12;
/// Offset of `num_buffers`.
pub const NUM_BUFFERS_OFFSET: usize = 10;

/// Bit numbers of offloads, as feature bits of a virtio device (virtio 1.2, section 5.1.3).
pub mod offload {
    /// The device completes checksums of frames that the driver sends.
    pub const CSUM: u32 = 0;
    /// The driver accepts frames with incomplete checksums.
    pub const GUEST_CSUM: u32 = 1;
    /// The driver accepts TCP segments over IPv4 that are longer than the MTU.
    pub const GUEST_TSO4: u32 = 7;
    /// The same over IPv6.
    pub const GUEST_TSO6: u32 = 8;
    /// The device splits long TCP segments over IPv4.
    pub const HOST_TSO4: u32 = 11;
    /// The same over IPv6.
    pub const HOST_TSO6: u32 = 12;
}

/// Whether `features` has the bit with this number.
pub const fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

const F_NEEDS_CSUM: u8 = 1;
/// In a gso_type: the segments have ECN marks. Not offered.
const GSO_ECN: u8 = 0x80;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// The header, little-endian like this host.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Bytes of all protocol headers together: a hint.
    pub hdr_len: u16,
    /// Bytes of payload in each segment.
    pub gso_size: u16,
    /// Offset at which the checksum starts to cover the frame.
    pub csum_start: u16,
    /// Offset of the checksum from `csum_start`.
    pub csum_offset: u16,
    /// How many buffers a received frame spans.
    pub num_buffers: u16,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);
const _: () = assert!(std::mem::offset_of!(Header, num_buffers) == NUM_BUFFERS_OFFSET);

impl Header {
    /// The header to send a frame of `len` bytes with, when `features` are negotiated; `None` if the driver asks for
    /// more than it negotiated, or for what this frame does not allow.
    pub fn checked(self, features: u64, len: usize) -> Option<Self> {
        let needs_csum = self.flags & F_NEEDS_CSUM != 0;
        let checksum_end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
        if needs_csum && !(has(features, offload::CSUM) && checksum_end <= len) {
            return None;
        }
        let segmented = match self.gso_type {
            GSO_NONE => false,
            GSO_TCPV4 if has(features, offload::HOST_TSO4) => true,
            GSO_TCPV6 if has(features, offload::HOST_TSO6) => true,
            _ => return None,
        };
        // Section 5.1.6.2.1: a frame to be segmented needs its checksum completed, and a segment size.
        if segmented && (!needs_csum || self.gso_size == 0 || usize::from(self.hdr_len) > len) {
            return None;
        }
        let checksum = if needs_csum { (self.csum_start, self.csum_offset) } else { (0, 0) };
        Some(Self {
            flags: self.flags & F_NEEDS_CSUM,
            gso_type: self.gso_type,
            hdr_len: if segmented { self.hdr_len } else { 0 },
            gso_size: if segmented { self.gso_size } else { 0 },
            csum_start: checksum.0,
            csum_offset: checksum.1,
            num_buffers: 0,
        })
    }
}

/// The `flags` that a driver with these `features` may see for a frame with this header; `None` if it may not receive
/// the frame at all (sections 5.1.6.4.1 and 5.1.6.4.2).
pub fn received(flags: u8, gso_type: u8, features: u64) -> Option<u8> {
    let segmented = match gso_type & !GSO_ECN {
        GSO_NONE => true,
        GSO_TCPV4 => has(features, offload::GUEST_TSO4),
        GSO_TCPV6 => has(features, offload::GUEST_TSO6),
        _ => false,
    };
    let checksums = has(features, offload::GUEST_CSUM);
    let taken = segmented && gso_type & GSO_ECN == 0 && (checksums || flags & F_NEEDS_CSUM == 0);
    taken.then_some(if checksums { flags } else { 0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::backend::net::header::*;

    const ALL: u64 = 1 << offload::CSUM | 1 << offload::HOST_TSO4 | 1 << offload::HOST_TSO6;

    fn tso() -> Header {
        Header {
            flags: 1,
            gso_type: GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        }
    }

    #[test]
    fn negotiated_offloads_pass() {
        assert_eq!(tso().checked(ALL, 9000), Some(tso()));
        assert_eq!(Header::default().checked(0, 0), Some(Header::default()));
        let leftovers = Header { csum_start: 9, gso_size: 7, num_buffers: 3, flags: 2, ..Header::default() };
        assert_eq!(leftovers.checked(0, 60), Some(Header::default()), "meaningless fields are not passed on");
    }

    #[test]
    fn other_offloads_are_dropped() {
        assert_eq!(tso().checked(0, 9000), None);
        assert_eq!(tso().checked(1 << offload::CSUM, 9000), None);
        assert_eq!(tso().checked(ALL & !(1 << offload::CSUM), 9000), None);
        for bad in [
            Header { flags: 0, ..tso() },
            Header { gso_size: 0, ..tso() },
            Header { hdr_len: 9001, ..tso() },
            Header { csum_start: u16::MAX, csum_offset: u16::MAX, ..tso() },
            Header { csum_start: 8983, ..tso() },
            Header { gso_type: 3, ..tso() },
            Header { gso_type: GSO_TCPV4 | 0x80, ..tso() },
        ] {
            assert_eq!(bad.checked(ALL, 9000), None, "{bad:?}");
        }
    }

    #[test]
    fn offloads_without_negotiation_do_not_reach_the_driver() {
        const GUEST: u64 = 1 << offload::GUEST_CSUM | 1 << offload::GUEST_TSO4;
        assert_eq!(received(1, GSO_TCPV4, GUEST), Some(1));
        assert_eq!(
            (received(2, 0, GUEST), received(2, 0, 0)),
            (Some(2), Some(0)),
            "a checksum that is right"
        );
        assert_eq!(received(1, 0, 0), None, "a checksum that is not there");
        for (gso_type, features) in
            [(GSO_TCPV4, 0), (GSO_TCPV6, GUEST), (GSO_TCPV4 | GSO_ECN, GUEST), (3, GUEST)]
        {
            assert_eq!(received(1, gso_type, features), None, "{gso_type}");
        }
    }

    proptest! {
        #[test]
        fn headers_that_pass_are_negotiated_and_fit(bytes: [u8; 12], features: u64, len in 0usize..70_000) {
            let header = Header::read_from_bytes(&bytes).unwrap();
            if let Some(passed) = header.checked(features, len) {
                prop_assert!(passed.flags & !F_NEEDS_CSUM == 0);
                if passed.flags != 0 {
                    prop_assert!(has(features, offload::CSUM));
                    prop_assert!(usize::from(passed.csum_start) + usize::from(passed.csum_offset) + 2 <= len);
                }
                match passed.gso_type {
                    0 => prop_assert_eq!((passed.gso_size, passed.hdr_len), (0, 0)),
                    1 => prop_assert!(has(features, offload::HOST_TSO4) && passed.flags == 1),
                    4 => prop_assert!(has(features, offload::HOST_TSO6) && passed.flags == 1),
                    other => prop_assert!(false, "type {}", other),
                }
                // Passing twice changes nothing.
                prop_assert_eq!(passed.checked(features, len), Some(passed));
            }
        }
    }
}
