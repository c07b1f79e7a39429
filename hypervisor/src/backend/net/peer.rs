//! A network peer inside this process, so that a measurement of the network device measures nothing else.
//!
//! It counts and discards the guest's frames, and sends frames on request. Requests are *control frames*: Ethernet
//! frames of type 0x88b5 (IEEE Std 802 Local Experimental Ethertype 1) with this payload, little-endian:
//!
//! | Bytes | Field | |
//! | --- | --- | --- |
//! | 14..18 | magic | `PVNP` in memory |
//! | 18..20 | operation | 1 send, 2 report |
//! | 20..24 | count | send: how many frames; report: 0 |
//! | 24..28 | size | send: bytes of each frame, Ethernet header included, 60 to 1514; report: 0 |
//!
//! *Send*: the peer sends `count` frames of type 0x88b5 with `size` bytes each. Bytes 14..22 (u64) are the frame's
//! number, counted from 0; every byte after them is the lowest byte of that number. A new request replaces an
//! unfinished one.
//!
//! *Report*: the peer answers with one control frame of 60 bytes with operation 2. Bytes 28..36 (u64) are the number of
//! frames since the last report, bytes 36..44 (u64) the number of bytes in them, without `virtio_net_hdr`. Frames of
//! type 0x88b5 are not counted.
//!
//! The peer's frames go from 02:00:00:00:88:b5 to the sender of the request. Other control frames are discarded and not
//! counted. The peer offers no offloads.

#![forbid(unsafe_code)]

use super::backend::{Backend, Received, Sent, Watch};
use super::header::{HEADER_LEN, Header};
use super::scatter_list::ScatterList;

/// The peer's own address.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0x88, 0xb5];
/// Ethernet type of control and test frames, in network byte order.
const ETHERTYPE: [u8; 2] = 0x88b5u16.to_be_bytes();
const MAGIC: [u8; 4] = *b"PVNP";
const SEND: u16 = 1;
const REPORT: u16 = 2;
/// Sizes of Ethernet frames in bytes, without the frame check sequence.
const SIZES: std::ops::RangeInclusive<usize> = 60..=1514;
/// Bytes of a control frame that have a meaning.
const CONTROL_LEN: usize = 28;

/// The peer.
#[derive(Debug)]
pub struct Peer {
    frames: u64,
    bytes: u64,
    /// Numbers of the frames still to be sent: `next..end`.
    next: u64,
    end: u64,
    size: usize,
    report: bool,
    guest: [u8; 6],
    frame: [u8; *SIZES.end()],
}

impl Default for Peer {
    fn default() -> Self {
        let zero = [0; *SIZES.end()];
        Self { frames: 0, bytes: 0, next: 0, end: 0, size: 0, report: false, guest: [0; 6], frame: zero }
    }
}

/// Bytes `at..at + N` of a control frame.
fn field<const N: usize>(frame: &[u8; CONTROL_LEN], at: usize) -> [u8; N] {
    frame.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

impl Peer {
    /// Handles a control frame.
    fn control(&mut self, frame: &[u8; CONTROL_LEN]) {
        if field(frame, 14) != MAGIC {
            return;
        }
        self.guest = field(frame, 6);
        let count = u32::from_le_bytes(field(frame, 20));
        let size = usize::try_from(u32::from_le_bytes(field(frame, 24))).unwrap_or(usize::MAX);
        match u16::from_le_bytes(field(frame, 18)) {
            SEND if SIZES.contains(&size) => (self.next, self.end, self.size) = (0, count.into(), size),
            REPORT => self.report = true,
            _ => {}
        }
    }

    /// Writes the next frame to be sent into `self.frame`; returns its length.
    fn compose(&mut self) -> Option<usize> {
        let report = std::mem::take(&mut self.report);
        let (len, fill) = if report {
            (*SIZES.start(), 0)
        } else if self.next < self.end {
            (self.size, self.next.to_le_bytes()[0])
        } else {
            return None;
        };
        self.frame.get_mut(..len)?.fill(fill);
        self.put(0, &self.guest.clone());
        self.put(6, &MAC);
        self.put(12, &ETHERTYPE);
        if report {
            let (frames, bytes) = (std::mem::take(&mut self.frames), std::mem::take(&mut self.bytes));
            self.put(14, &MAGIC);
            self.put(18, &REPORT.to_le_bytes());
            self.put(28, &frames.to_le_bytes());
            self.put(36, &bytes.to_le_bytes());
        } else {
            self.put(14, &self.next.to_le_bytes());
            self.next += 1;
        }
        Some(len)
    }
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.frame.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    }
}

impl Backend for Peer {
    fn is_up(&self) -> bool {
        true
    }
    fn watch(&self, _: bool) -> Option<Watch> {
        None
    }
    fn ready(&mut self, _: libc::c_short) {}
    fn send(&mut self, _: &Header, frame: &mut ScatterList<'_>) -> Sent {
        let mut start = [0; CONTROL_LEN];
        let got = frame.copy_out(0, &mut start);
        if got >= 14 && field(&start, 12) == ETHERTYPE {
            self.control(&start);
        } else {
            self.frames += 1;
            self.bytes = self.bytes.saturating_add(frame.bytes() as u64);
        }
        Sent::Done
    }
    fn receive(&mut self, into: &mut ScatterList<'_>) -> Received {
        let Some(len) = self.compose() else { return Received::Nothing };
        let frame = self.frame.get(..len).unwrap_or_default();
        if HEADER_LEN + len > into.bytes() {
            return Received::Lost;
        }
        into.copy_in(0, &[0; HEADER_LEN]);
        into.copy_in(HEADER_LEN, frame);
        Received::Frame(HEADER_LEN + len)
    }
}

/// The control frame by which a guest at `from` requests an operation. For tests.
#[cfg(test)]
pub(crate) fn control_frame(from: [u8; 6], operation: u16, count: u32, size: u32) -> Vec<u8> {
    let mut frame = [&MAC[..], &from, &ETHERTYPE, &MAGIC, &operation.to_le_bytes()].concat();
    frame.extend_from_slice(&count.to_le_bytes());
    frame.extend_from_slice(&size.to_le_bytes());
    frame.resize(60, 0);
    frame
}

#[cfg(test)]
mod tests {
    use vm_memory::VolatileSlice;

    use crate::backend::net::peer::*;

    impl Peer {
        /// Whether [`Backend::receive`] would return a frame, or report a lost one.
        fn has_frames(&self) -> bool {
            self.report || self.next < self.end
        }
    }

    const GUEST: [u8; 6] = [2, 1, 1, 1, 1, 1];

    fn send(peer: &mut Peer, mut frame: Vec<u8>) {
        let mut pieces = ScatterList::default();
        pieces.push(&VolatileSlice::from(&mut frame[..])).unwrap();
        assert_eq!(peer.send(&Header::default(), &mut pieces), Sent::Done);
    }
    fn receive(peer: &mut Peer, room: usize) -> Option<Vec<u8>> {
        let mut memory = vec![0; room];
        let mut pieces = ScatterList::default();
        pieces.push(&VolatileSlice::from(&mut memory[..])).unwrap();
        let received = peer.receive(&mut pieces);
        drop(pieces);
        match received {
            Received::Frame(len) => Some(memory[HEADER_LEN..len].to_vec()),
            _ => None,
        }
    }

    #[test]
    fn the_peer_sends_the_requested_frames() {
        let mut peer = Peer::default();
        assert!(!peer.has_frames());
        send(&mut peer, control_frame(GUEST, SEND, 300, 64));
        for number in 0..300u64 {
            assert!(peer.has_frames());
            let frame = receive(&mut peer, 2048).unwrap();
            assert_eq!(
                (frame.len(), &frame[..6], &frame[6..12], &frame[12..14]),
                (64, &GUEST[..], &MAC[..], &ETHERTYPE[..])
            );
            assert_eq!(frame[14..22], number.to_le_bytes());
            assert!(frame[22..].iter().all(|&b| b == number as u8));
        }
        assert!(!peer.has_frames() && receive(&mut peer, 2048).is_none());
    }

    #[test]
    fn a_report_counts_the_frames_since_the_last_report() {
        let mut peer = Peer::default();
        for size in [60, 1514] {
            send(&mut peer, vec![0; size]);
        }
        for (frames, bytes) in [(2u64, 1574u64), (0, 0)] {
            send(&mut peer, control_frame(GUEST, REPORT, 0, 0));
            let report = receive(&mut peer, 2048).unwrap();
            assert_eq!((&report[14..18], &report[18..20]), (&MAGIC[..], &REPORT.to_le_bytes()[..]));
            assert_eq!(
                (&report[28..36], &report[36..44]),
                (&frames.to_le_bytes()[..], &bytes.to_le_bytes()[..])
            );
        }
        assert!(!peer.has_frames());
    }

    #[test]
    fn malformed_frames_are_discarded() {
        let mut peer = Peer::default();
        let mut bad =
            vec![vec![], vec![0x88; 13], control_frame(GUEST, 3, 1, 64), control_frame(GUEST, SEND, 1, 59)];
        bad.push(control_frame(GUEST, SEND, 1, 1515));
        bad.push(control_frame(GUEST, SEND, 1, u32::MAX));
        let mut wrong_magic = control_frame(GUEST, SEND, 1, 64);
        wrong_magic[14] ^= 1;
        bad.push(wrong_magic);
        bad.push(control_frame(GUEST, SEND, 1, 64)[..20].to_vec());
        for frame in bad {
            send(&mut peer, frame.clone());
            assert!(!peer.has_frames(), "{frame:?}");
        }
        send(&mut peer, control_frame(GUEST, SEND, 2, 100));
        assert_eq!(receive(&mut peer, 111), None, "no room: lost");
        assert_eq!(receive(&mut peer, 112).unwrap()[14], 1);
    }
}
