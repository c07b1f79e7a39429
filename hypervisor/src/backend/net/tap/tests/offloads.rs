//! Offloads over a TAP interface, tested with the host's TCP: the driver leaves checksums and segmentation to the
//! device, and accepts packets whose checksums and segmentation are left to it.
//!
//! The driver has just enough TCP for one connection. If the host's stack acknowledges and delivers what it sends, the
//! offloads were requested correctly; what the host sends is checked here.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};

use super::{in_own_network, mac_of, set_address, set_address6};
use crate::backend::net::header::{HEADER_LEN, Header, offload};
use crate::backend::net::tap::*;
use crate::testing::skip::skip;
use crate::testing::virtio::{BUFFERS, Bench, Ring};
use crate::virtio::net::Net;

const HOST: [u8; 4] = [10, 9, 0, 1];
const GUEST: [u8; 4] = [10, 9, 0, 2];
/// Two addresses of an unassigned local network (RFC 4193).
const HOST6: [u8; 16] = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const GUEST6: [u8; 16] = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const GUEST_PORT: u16 = 4000;
const SYN: u8 = 2;
const ACK: u8 = 16;
const PSH_ACK: u8 = 24;
const ETHERNET: usize = 14;
/// Length of a TCP header without options.
const TCP: usize = 20;
/// Protocol numbers in IP headers.
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ICMPV6: u8 = 58;
/// Bytes of a receive buffer; a frame takes several.
const BUFFER: u64 = 2048;
const OUT: u64 = BUFFERS + 0x6_0000;

fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What differs between the two versions of IP.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn host(self) -> IpAddr {
        if self == Self::V4 { HOST.into() } else { HOST6.into() }
    }
    fn ethertype(self) -> [u8; 2] {
        if self == Self::V4 { [8, 0] } else { [0x86, 0xdd] }
    }
    /// Length of the IP header.
    fn header(self) -> usize {
        if self == Self::V4 { 20 } else { 40 }
    }
    /// The maximum segment size of an interface with an MTU of 1500.
    fn mss(self) -> usize {
        1500 - self.header() - TCP
    }
    /// `VIRTIO_NET_HDR_GSO_TCPV4`, `_TCPV6`.
    fn gso(self) -> u8 {
        if self == Self::V4 { 1 } else { 4 }
    }
    fn features(self) -> [u32; 2] {
        match self {
            Self::V4 => [offload::HOST_TSO4, offload::GUEST_TSO4],
            Self::V6 => [offload::HOST_TSO6, offload::GUEST_TSO6],
        }
    }
    /// The sum of the pseudo-header of a packet between driver and host, in either direction: the content of a partial
    /// checksum field.
    fn pseudo(self, protocol: u8, len: usize) -> u16 {
        let rest = [(len as u32).to_be_bytes(), [0, 0, 0, protocol]].concat();
        match self {
            Self::V4 => sum(&[&HOST[..], &GUEST, &rest].concat()),
            Self::V6 => sum(&[&HOST6[..], &GUEST6, &rest].concat()),
        }
    }
    /// The IP header of a packet of the driver, which is followed by `len` bytes.
    fn packet(self, len: usize) -> Vec<u8> {
        if self == Self::V6 {
            let start = [&[0x60, 0, 0, 0][..], &(len as u16).to_be_bytes(), &[PROTOCOL_TCP, 64]].concat();
            return [&start[..], &GUEST6, &HOST6].concat();
        }
        let mut ip = vec![0x45, 0];
        ip.extend((20 + len as u16).to_be_bytes());
        ip.extend([0, 1, 0x40, 0, 64, PROTOCOL_TCP, 0, 0]);
        ip.extend([GUEST, HOST].concat());
        let checksum = !sum(&ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        ip
    }
    /// The TCP segment in a frame, if there is one.
    fn segment(self, frame: &[u8]) -> Option<&[u8]> {
        let word = |at| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        let (protocol, end) = match self {
            Self::V4 => (23, ETHERNET + word(16)),
            Self::V6 => (20, ETHERNET + 40 + word(18)),
        };
        let is_ours = frame[12..14] == self.ethertype() && frame[protocol] == PROTOCOL_TCP;
        is_ours.then(|| &frame[ETHERNET + self.header()..end])
    }
}

/// The answer to a request for the driver's address (ARP, RFC 826; neighbour solicitation, RFC 4861), if `frame` is
/// one.
fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let asker = &frame[6..12];
    if frame[12..14] == [8, 6] && frame[38..42] == GUEST {
        let answer = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &GUEST_MAC, &GUEST, &frame[22..32]].concat();
        return Some([asker, &GUEST_MAC, &[8, 6], &answer].concat());
    }
    let solicits = frame[12..14] == [0x86, 0xdd] && frame[20] == PROTOCOL_ICMPV6 && frame[54] == 135;
    if !solicits || frame[62..78] != GUEST6 {
        return None;
    }
    let mut icmp = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &GUEST6, &[2, 1], &GUEST_MAC].concat();
    let checksum = !sum(&[&Family::V6.pseudo(PROTOCOL_ICMPV6, icmp.len()).to_be_bytes()[..], &icmp].concat());
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    let ip =
        [&[0x60, 0, 0, 0, 0, icmp.len() as u8, PROTOCOL_ICMPV6, 255][..], &GUEST6, &frame[22..38]].concat();
    Some([asker, &GUEST_MAC, &[0x86, 0xdd], &ip, &icmp].concat())
}

/// The driver's end of a connection.
struct Peer {
    family: Family,
    bench: Bench,
    receive: Ring,
    transmit: Ring,
    host_mac: [u8; 6],
    host_port: u16,
    sequence: u32,
    expected: u32,
}

impl Peer {
    /// Sends a segment with a partial checksum, which is to be segmented if it is long.
    fn send(&mut self, flags: u8, data: &[u8]) {
        let family = self.family;
        let tcp_len = TCP + data.len();
        let mut tcp = [GUEST_PORT.to_be_bytes(), self.host_port.to_be_bytes()].concat();
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.expected.to_be_bytes());
        tcp.extend([0x50, flags, 0xff, 0xff]);
        tcp.extend(family.pseudo(PROTOCOL_TCP, tcp_len).to_be_bytes());
        tcp.extend([0, 0]);
        let headers = ETHERNET + family.header();
        let long = data.len() > family.mss();
        let header = Header {
            flags: 1,
            gso_type: if long { family.gso() } else { 0 },
            hdr_len: if long { (headers + TCP) as u16 } else { 0 },
            gso_size: if long { family.mss() as u16 } else { 0 },
            csum_start: headers as u16,
            csum_offset: 16,
            num_buffers: 0,
        };
        let ethernet = [&self.host_mac[..], &GUEST_MAC, &family.ethertype()].concat();
        self.put(&[header.as_bytes(), &ethernet, &family.packet(tcp_len), &tcp, data].concat());
        self.sequence = self.sequence.wrapping_add(data.len() as u32 + u32::from(flags & SYN != 0));
    }
    fn put(&mut self, packet: &[u8]) {
        self.bench.put(OUT, packet);
        self.transmit.chain(0, &[(OUT, packet.len() as u32, false)]);
        self.bench.run(1, &mut self.transmit);
    }
    /// Receives a frame: returns its header and the whole frame.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let mut packet = Vec::new();
        let (mut left, mut first) = (1, true);
        while left > 0 {
            let mut used = None;
            let (bench, ring) = (&self.bench, &mut self.receive);
            bench.interrupts.wait_until(|| {
                used = used.or_else(|| ring.next_used());
                used.is_some()
            });
            let (head, len) = used.unwrap();
            let at = BUFFERS + u64::from(head) * BUFFER;
            packet.extend(bench.get(at, len as usize));
            ring.chain(head as u16, &[(at, BUFFER as u32, true)]);
            bench.slot.kick(0);
            if std::mem::take(&mut first) {
                left = u16::from_le_bytes([packet[10], packet[11]]);
            }
            left -= 1;
        }
        let header = zerocopy::FromBytes::read_from_bytes(&packet[..HEADER_LEN]).unwrap();
        (header, packet.split_off(HEADER_LEN))
    }
    /// Receives a segment of the connection: returns its header, flags and data. Answers requests for the driver's
    /// address.
    fn segment(&mut self) -> (Header, u8, Vec<u8>) {
        loop {
            let (header, frame) = self.receive();
            if let Some(answer) = answer(&frame) {
                self.host_mac.copy_from_slice(&frame[6..12]);
                self.put(&[&[0; HEADER_LEN][..], &answer].concat());
            }
            let Some(tcp) = self.family.segment(&frame) else { continue };
            let wanted = self.family.pseudo(PROTOCOL_TCP, tcp.len());
            let right = if header.flags & 1 != 0 {
                let start = (ETHERNET + self.family.header()) as u16;
                (header.csum_start, header.csum_offset) == (start, 16)
                    && u16::from_be_bytes([tcp[16], tcp[17]]) == wanted
            } else {
                header.flags & 2 != 0 || sum(&[&wanted.to_be_bytes()[..], tcp].concat()) == 0xffff
            };
            assert!(right, "a checksum that is neither finished nor begun: {header:?}");
            let data = tcp[usize::from(tcp[12] >> 4) * 4..].to_vec();
            let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
            let syn = tcp[13] & SYN;
            if syn != 0 {
                self.expected = sequence;
            }
            if sequence == self.expected {
                self.expected = sequence.wrapping_add(data.len() as u32 + u32::from(syn != 0));
                return (header, tcp[13], data);
            }
        }
    }
}

#[test]
fn the_host_s_tcp_takes_long_segments_and_sends_them() {
    in_own_network(|| {
        let tap = Tap::open("pvtest0").unwrap();
        set_address("pvtest0", HOST);
        both_ways(tap, Family::V4);
    });
}

#[test]
fn the_host_s_tcp_over_ipv6_takes_long_segments_and_sends_them() {
    in_own_network(|| {
        let tap = Tap::open("pvtest0").unwrap();
        match set_address6("pvtest0", HOST6) {
            Ok(()) => both_ways(tap, Family::V6),
            Err(why) => skip("ipv6", why),
        }
    });
}

/// A connection over `tap`, and long segments in both directions.
fn both_ways(tap: Tap, family: Family) {
    let listener = TcpListener::bind((family.host(), 0)).unwrap();
    let host_port = listener.local_addr().unwrap().port();
    let net = Net::new(Box::new(tap), crate::backend::net::mac::Mac(GUEST_MAC));
    let features = [offload::CSUM, offload::GUEST_CSUM]
        .iter()
        .chain(&family.features())
        .fold(1 << virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF, |all, bit| all | 1 << bit);
    let mut bench = Bench::new(net);
    let mut rings = bench.start(features, 2, 128);
    let transmit = rings.pop().unwrap();
    let mut receive = rings.pop().unwrap();
    for n in 0..128 {
        receive.chain(n, &[(BUFFERS + u64::from(n) * BUFFER, BUFFER as u32, true)]);
    }
    bench.slot.kick(0);
    let (sequence, expected, host_mac) = (1000, 0, mac_of("pvtest0"));
    let mut peer = Peer { family, bench, receive, transmit, host_mac, host_port, sequence, expected };
    peer.send(SYN, &[]);
    assert_eq!(peer.segment().1, SYN | ACK);
    peer.send(ACK, &[]);
    let (mut socket, _) = listener.accept().unwrap();

    // The kernel may segment it or not, but delivers all of it.
    let sent: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
    peer.send(PSH_ACK, &sent);
    let mut got = vec![0; sent.len()];
    socket.read_exact(&mut got).unwrap();
    assert!(got == sent);

    let answer: Vec<u8> = (0..50_000u32).map(|i| (i % 241) as u8).collect();
    socket.write_all(&answer).unwrap();
    let (mut got, mut longest) = (Vec::new(), 0);
    while got.len() < answer.len() {
        let (header, _, data) = peer.segment();
        let is_long = data.len() > family.mss();
        // A retransmission may be shorter than a segment, and still be marked for segmentation.
        let is_to_be_cut = header.gso_type == family.gso();
        assert_eq!(header.gso_size != 0, is_to_be_cut, "{header:?}");
        assert!(is_to_be_cut || !is_long, "{header:?}");
        longest = longest.max(data.len());
        got.extend(data);
        peer.send(ACK, &[]);
    }
    assert!(got == answer);
    assert!(longest > family.mss(), "the host has not left the cutting to us: {longest}");
}

/// Headers that would make the kernel access memory outside the frame, or divide it into empty segments: such frames
/// are lost.
#[test]
fn frames_with_impossible_offloads_are_lost_and_the_link_stays_up() {
    in_own_network(|| {
        let tap = Tap::open("pvtest0").unwrap();
        set_address("pvtest0", HOST);
        let features =
            [offload::CSUM, offload::HOST_TSO4, offload::HOST_TSO6].iter().fold(0, |all, bit| all | 1 << bit);
        let mut bench = Bench::new(Net::new(Box::new(tap), crate::backend::net::mac::Mac(GUEST_MAC)));
        let mut rings = bench.start(features, 2, 8);
        let interesting = [0u16, 1, 13, 14, 33, 34, 53, 54, 55, 99, 100, 101, 0x7fff, 0xffff];
        let mut packet = [0; HEADER_LEN + 100];
        packet[HEADER_LEN..HEADER_LEN + 14]
            .copy_from_slice(&[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 9, 8, 0]);
        packet[HEADER_LEN + 14] = 0x45;
        packet[HEADER_LEN + 23] = 6;
        let mut random = 12345u64;
        for _ in 0..3000 {
            let mut draw = |below: usize| {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) as usize % below
            };
            let header = Header {
                flags: draw(4) as u8,
                gso_type: [0, 1, 3, 4, 0x81, 0x84, 5, 255][draw(8)],
                hdr_len: interesting[draw(14)],
                gso_size: interesting[draw(14)],
                csum_start: interesting[draw(14)],
                csum_offset: interesting[draw(14)],
                num_buffers: draw(3) as u16,
            };
            packet[..HEADER_LEN].copy_from_slice(header.as_bytes());
            let len = HEADER_LEN + draw(101);
            bench.put(OUT, &packet[..len]);
            rings[1].chain(0, &[(OUT, len as u32, false)]);
            assert_eq!(bench.run(1, &mut rings[1]), (0, 0), "{header:?}");
        }
        assert_eq!(bench.slot.status(), 0xf);
        assert!(bench.slot.link().config().0.bytes()[6] & 1 != 0, "the link is up");
    });
}
