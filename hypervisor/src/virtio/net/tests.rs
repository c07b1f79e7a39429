//! The network device, between a test's rings and a back end.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::*;
use crate::backend::net::backend::MAX_FRAME;
use crate::backend::net::header::HEADER_LEN;
use crate::backend::net::peer::{Peer, control_frame};
use crate::backend::net::stream::Framed;
use crate::testing::virtio::{BUFFERS, Bench, MODERN, Ring};
use crate::virtio::QueueSetup;

const GUEST: Mac = Mac([2, 0, 0, 0, 0, 1]);
const MERGE: u64 = 1 << feature::MRG_RXBUF;
/// The address of frames to be sent. Buffers for received frames are at [`BUFFERS`].
const OUT: u64 = BUFFERS + 0x4_0000;

fn bench(backend: impl Backend + 'static) -> Bench {
    Bench::new(Net::new(Box::new(backend), GUEST))
}
fn streamed() -> (UnixStream, Bench) {
    let (ours, other) = UnixStream::pair().unwrap();
    (ours, bench(Framed::connected(other).unwrap()))
}
/// Offers a frame to be sent in descriptor `head`, with its header in the same buffer.
fn offer(bench: &Bench, ring: &mut Ring, head: u16, frame: &[u8]) {
    let at = OUT + u64::from(head) * 2048;
    bench.put(at, &[&[0; HEADER_LEN], frame].concat());
    ring.chain(head, &[(at, (HEADER_LEN + frame.len()) as u32, false)]);
}
fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}
fn next_used(bench: &Bench, ring: &mut Ring) -> (u32, u32) {
    let mut used = None;
    bench.interrupts.wait_until(|| {
        used = used.or_else(|| ring.next_used());
        used.is_some()
    });
    used.unwrap()
}
fn is_up(bench: &Bench) -> bool {
    bench.slot.link().config().0.bytes()[STATUS_OFFSET] & 1 != 0
}

#[test]
fn features_and_configuration() {
    let net = Net::new(Box::new(Peer::default()), GUEST);
    assert_eq!(net.config(), [2, 0, 0, 0, 0, 1, 1, 0]);
    let offered = net.info().features;
    assert_eq!(offered, 1 << feature::MAC | 1 << feature::STATUS | MERGE, "offloads depend on the back end");
    assert!(
        !net.accepts(1 << offload::GUEST_TSO4)
            && !net.accepts(1 << offload::HOST_TSO6 | 1 << offload::GUEST_CSUM)
    );
    assert!(net.accepts(1 << offload::GUEST_TSO4 | 1 << offload::GUEST_CSUM));
    let Mac([first, ..]) = Mac::random();
    assert_eq!(first & 3, 2);
    assert_eq!(Mac::random().to_string().parse::<Mac>().unwrap().to_string().len(), 17);
}

/// A back end that refuses whatever features the driver accepted.
struct Unwilling(std::thread::ThreadId);

impl Backend for Unwilling {
    fn accept(&mut self, _: u64) -> io::Result<()> {
        assert_ne!(std::thread::current().id(), self.0, "a vCPU's thread would have to wait");
        Err(io::ErrorKind::InvalidInput.into())
    }
    fn is_up(&self) -> bool {
        true
    }
    fn watch(&self, _: bool) -> Option<crate::backend::net::backend::Watch> {
        None
    }
    fn ready(&mut self, _: libc::c_short) {}
    fn send(
        &mut self,
        _: &crate::backend::net::header::Header,
        _: &mut crate::backend::net::scatter_list::ScatterList<'_>,
    ) -> crate::backend::net::backend::Sent {
        crate::backend::net::backend::Sent::Done
    }
    fn receive(
        &mut self,
        _: &mut crate::backend::net::scatter_list::ScatterList<'_>,
    ) -> crate::backend::net::backend::Received {
        crate::backend::net::backend::Received::Nothing
    }
}

#[test]
fn offloads_are_agreed_on_by_the_device_s_thread_and_told_if_they_fail() {
    let mut bench = bench(Unwilling(std::thread::current().id()));
    bench.start(0, 2, 8);
    assert_eq!((bench.offence(), bench.slot.status()), (Broken::Offloads, 0x4f));
}

#[test]
fn frames_go_out_in_order_with_the_header_apart_or_not() {
    for features in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
        let (mut other, mut bench) = streamed();
        let mut rings = bench.start(features, 2, 8);
        offer(&bench, &mut rings[1], 0, &[1; 60]);
        bench.put(OUT + 0x1000, &[2; 100]);
        rings[1].chain(
            1,
            &[
                (OUT + 0x800, 5, false),
                (OUT + 0x805, 7, false),
                (OUT + 0x1000, 1, false),
                (OUT + 0x1001, 99, false),
            ],
        );
        assert_eq!(bench.run(1, &mut rings[1]), (0, 0));
        assert_eq!(next_used(&bench, &mut rings[1]), (1, 0));
        let mut got = vec![0; 168];
        other.read_exact(&mut got).unwrap();
        assert_eq!(got, [framed(&[1; 60]), framed(&[2; 100])].concat());
    }
}

#[test]
fn without_merging_a_frame_is_put_into_one_buffer() {
    let (mut other, mut bench) = streamed();
    let mut rings = bench.start(0, 2, 8);
    bench.put(BUFFERS, &[0xee; 0x1000]);
    rings[0].chain(0, &[(BUFFERS, 4, true), (BUFFERS + 0x800, 100, true)]);
    bench.slot.kick(0);
    other.write_all(&[framed(&[9; 93]), framed(&[8; 92])].concat()).unwrap();
    assert_eq!(next_used(&bench, &mut rings[0]), (0, 104), "the first frame does not fit");
    assert_eq!([bench.get(BUFFERS, 5), bench.get(BUFFERS + 0x800, 100)].concat()[..5], [0, 0, 0, 0, 0xee]);
    assert_eq!(bench.get(BUFFERS + 0x800, 101), [&[0, 0, 0, 0, 0, 0, 1, 0][..], &[8; 92], &[0xee]].concat());
}

#[test]
fn with_merging_a_frame_takes_the_buffers_that_it_needs() {
    let (mut other, mut bench) = streamed();
    let mut rings = bench.start(MERGE, 2, 8);
    for n in 0..6u16 {
        rings[0].chain(n, &[(BUFFERS + u64::from(n) * 0x100, 64, true)]);
    }
    bench.slot.kick(0);
    other.write_all(&framed(&(0..=139).collect::<Vec<u8>>())).unwrap();
    other.write_all(&framed(&[7; 20])).unwrap();
    let used: Vec<_> = (0..4).map(|_| next_used(&bench, &mut rings[0])).collect();
    assert_eq!(used, [(0, 64), (1, 64), (2, 24), (3, 32)]);
    let frame =
        [bench.get(BUFFERS, 64), bench.get(BUFFERS + 0x100, 64), bench.get(BUFFERS + 0x200, 24)].concat();
    assert_eq!(frame[..HEADER_LEN], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    assert!(frame[HEADER_LEN..].iter().copied().eq(0..=139));
    assert_eq!(bench.get(BUFFERS + 0x300 + 10, 3), [1, 0, 7]);
}

#[test]
fn the_buffers_of_one_frame_interrupt_once_and_where_the_driver_wants() {
    let (mut other, mut bench) = streamed();
    let mut rings = bench.start(MERGE | 1 << VIRTIO_RING_F_EVENT_IDX, 2, 8);
    let want = |bench: &Bench, used_event: u16| bench.put(0x9000 + 4 + 2 * 8, &used_event.to_le_bytes());
    for n in 0..6u16 {
        rings[0].chain(n, &[(BUFFERS + u64::from(n) * 0x100, 64, true)]);
    }
    let interrupts = |bench: &Bench| bench.interrupts.queues.load(Ordering::SeqCst);
    want(&bench, 1);
    bench.slot.kick(0);
    other.write_all(&framed(&[1; 140])).unwrap();
    bench.interrupts.wait_until(|| interrupts(&bench) == 1);
    assert_eq!(rings[0].used_index(), 3);
    want(&bench, 5);
    for used in 4..=6 {
        other.write_all(&framed(&[1; 40])).unwrap();
        while rings[0].used_index() != used {
            std::thread::yield_now();
        }
    }
    bench.interrupts.wait_until(|| interrupts(&bench) == 2);
    bench.reset();
    assert_eq!(interrupts(&bench), 2);
}

#[test]
fn a_peer_sends_ten_thousand_frames_and_counts_as_many() {
    for features in [0, MERGE | 1 << VIRTIO_RING_F_EVENT_IDX] {
        let mut bench = bench(Peer::default());
        let mut rings = bench.start(features, 2, 16);
        let (receive, transmit) = rings.split_at_mut(1);
        let (receive, transmit) = (&mut receive[0], &mut transmit[0]);
        for n in 0..16u16 {
            receive.chain(n, &[(BUFFERS + u64::from(n) * 0x800, 0x800, true)]);
        }
        offer(&bench, transmit, 0, &control_frame(GUEST.0, 1, 10_000, 1514));
        bench.run(1, transmit);
        for number in 0..10_000u64 {
            let (head, len) = next_used(&bench, receive);
            assert_eq!((u64::from(head), len), (number % 16, 1526));
            let at = BUFFERS + u64::from(head) * 0x800;
            assert_eq!(bench.get(at + 12 + 14, 8), number.to_le_bytes());
            receive.chain(head as u16, &[(at, 0x800, true)]);
            bench.slot.kick(0);
        }
        for n in 0..10_000u16 {
            if n >= 16 {
                next_used(&bench, transmit);
            }
            offer(&bench, transmit, n % 16, &[0x11; 64]);
            bench.slot.kick(1);
        }
        (0..16).for_each(|_| _ = next_used(&bench, transmit));
        offer(&bench, transmit, 0, &control_frame(GUEST.0, 2, 0, 0));
        bench.slot.kick(1);
        let (head, _) = next_used(&bench, receive);
        let counts = bench.get(BUFFERS + u64::from(head) * 0x800 + 12 + 28, 16);
        assert_eq!(counts, [10_000u64.to_le_bytes(), 640_000u64.to_le_bytes()].concat());
    }
}

#[test]
fn a_closed_socket_is_a_link_that_is_down_and_nothing_worse() {
    let (other, mut bench) = streamed();
    let mut rings = bench.start(0, 2, 8);
    rings[0].chain(0, &[(BUFFERS, 2048, true)]);
    bench.slot.kick(0);
    assert!(is_up(&bench));
    drop(other);
    bench.interrupts.wait_until(|| bench.slot.link().config().1 == 1);
    assert!(!is_up(&bench) && bench.interrupts.configs.load(Ordering::SeqCst) == 1);
    offer(&bench, &mut rings[1], 0, &[1; 60]);
    assert_eq!(bench.run(1, &mut rings[1]), (0, 0), "frames are lost");
    assert_eq!(bench.slot.status(), 0xf);
    bench.reset();
    bench.start(0, 2, 8);
    assert!(!is_up(&bench));
}

#[test]
fn an_impossible_length_closes_the_socket_too() {
    let (mut other, mut bench) = streamed();
    let mut rings = bench.start(0, 2, 8);
    rings[0].chain(0, &[(BUFFERS, 2048, true)]);
    bench.slot.kick(0);
    other.write_all(&u32::MAX.to_be_bytes()).unwrap();
    bench.interrupts.wait_until(|| !is_up(&bench));
    assert_eq!((rings[0].used_index(), bench.slot.status()), (0, 0xf));
}

#[test]
fn a_socket_that_is_not_read_delays_frames_and_loses_none() {
    let (mut other, mut bench) = streamed();
    let mut rings = bench.start(0, 2, 4);
    // More than the buffers of device and socket hold: different frames of 64 KiB, one at a time while each is taken at
    // once.
    const LEN: usize = 0x1_0000 - 1;
    let frame = |head: u16| [&[0; HEADER_LEN][..], &[head as u8; LEN - HEADER_LEN]].concat();
    let at = |head: u16| BUFFERS + u64::from(head) * 0x1_0000;
    for head in 0..4 {
        bench.put(at(head), &frame(head));
        rings[1].chain(head, &[(at(head), LEN as u32, false)]);
    }
    bench.slot.kick(1);
    for n in 0..40u16 {
        let expected = framed(&frame(n % 4)[HEADER_LEN..]);
        let mut got = vec![0; expected.len()];
        other.read_exact(&mut got).unwrap();
        assert!(got == expected, "frame {n}");
        let (head, _) = next_used(&bench, &mut rings[1]);
        assert_eq!(head, u32::from(n % 4));
        rings[1].chain(n % 4, &[(at(n % 4), LEN as u32, false)]);
        bench.slot.kick(1);
    }
    assert!(is_up(&bench));
}

#[test]
fn malformed_requests_stop_the_device() {
    type Chain = &'static [(u64, u32, bool)];
    let bad: &[(usize, Chain)] = &[
        (1, &[(BUFFERS, 100, true)]),
        (1, &[(BUFFERS, 72, false), (BUFFERS, 8, true)]),
        (1, &[(BUFFERS, 11, false)]),
        (1, &[(BUFFERS, 0, false)]),
        (0, &[(BUFFERS, 100, false)]),
        (0, &[(BUFFERS, 100, false), (BUFFERS, 2048, true)]),
        (0, &[(BUFFERS, 11, true)]),
        (0, &[(u64::MAX - 4, 2048, true)]),
    ];
    for (queue, chain) in bad {
        let mut bench = bench(Peer::default());
        let mut rings = bench.start(0, 2, 8);
        rings[*queue].chain(0, chain);
        bench.slot.kick(*queue as u16);
        assert!(matches!(bench.offence(), Broken::Request(_) | Broken::Address { .. }), "{queue} {chain:?}");
        assert_eq!((bench.slot.status(), rings[*queue].used_index()), (0x4f, 0));
        bench.reset();
        let mut rings = bench.start(0, 2, 8);
        offer(&bench, &mut rings[1], 0, &[1; 60]);
        assert_eq!(bench.run(1, &mut rings[1]), (0, 0), "after a reset it works");
    }
}

#[test]
fn frames_before_a_malformed_one_are_sent() {
    let (mut other, mut bench) = streamed();
    let mut rings = bench.start(0, 2, 16);
    // All are available before the device looks, and there are more than it takes at once.
    for head in 0..10 {
        offer(&bench, &mut rings[1], head, &[head as u8; 60]);
    }
    rings[1].chain(10, &[(BUFFERS, 100, true)]);
    offer(&bench, &mut rings[1], 11, &[11; 60]);
    bench.slot.kick(1);
    assert!(matches!(bench.offence(), Broken::Request(_)));
    assert_eq!(rings[1].used_index(), 10);
    let mut got = vec![0; 640];
    other.read_exact(&mut got).unwrap();
    assert_eq!(got, (0..10).flat_map(|n| framed(&[n; 60])).collect::<Vec<_>>());
}

#[test]
fn impossible_frames_are_lost_and_the_device_goes_on() {
    let (mut other, mut bench) = streamed();
    let mut rings = bench.start(0, 2, 8);
    bench.put(OUT, &[0; HEADER_LEN]);
    rings[1].chain(0, &[(OUT, HEADER_LEN as u32, false)]);
    rings[1].chain(1, &[(OUT, HEADER_LEN as u32, false), (BUFFERS, (MAX_FRAME + 1) as u32, false)]);
    // A header that asks for an offload that was not offered.
    bench.put(OUT + 0x100, &[1; HEADER_LEN + 60]);
    rings[1].chain(3, &[(OUT + 0x100, HEADER_LEN as u32 + 60, false)]);
    offer(&bench, &mut rings[1], 5, &[4; 60]);
    bench.slot.kick(1);
    let heads: Vec<_> = (0..4).map(|_| next_used(&bench, &mut rings[1]).0).collect();
    assert_eq!(heads, [0, 1, 3, 5]);
    let mut got = vec![0; 64];
    other.read_exact(&mut got).unwrap();
    assert_eq!(got, framed(&[4; 60]));
}

#[test]
fn a_flood_does_not_delay_a_reset() {
    let mut bench = bench(Peer::default());
    let mut rings = bench.start(0, 2, 256);
    for n in 0..256u16 {
        rings[0].chain(n, &[(BUFFERS, 2048, true)]);
    }
    offer(&bench, &mut rings[1], 0, &control_frame(GUEST.0, 1, u32::MAX, 60));
    bench.run(1, &mut rings[1]);
    bench.reset();
    assert_eq!(bench.slot.status(), 0);
}

#[test]
fn a_device_that_uses_one_queue_only() {
    let mut bench = bench(Peer::default());
    let mut ring = Ring::new(&bench.memory, 1, 8);
    bench.slot.activate(&bench.memory.clone(), MODERN, &[QueueSetup::default(), ring.setup]).unwrap();
    offer(&bench, &mut ring, 0, &[1; 60]);
    assert_eq!(bench.run(1, &mut ring), (0, 0));
}

/// A descriptor with an address inside or outside of the test's buffers, any flags, and a next one that may be past the
/// end of the table.
fn descriptor() -> impl Strategy<Value = (u64, u32, u32, u16)> {
    let address = prop_oneof![BUFFERS..0x10_1000u64, any::<u64>()];
    let len = prop_oneof![0..3000u32, any::<u32>()];
    (address, len, 0..8u32, 0..18u16)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_rings_do_harm(
        descriptors in proptest::collection::vec(descriptor(), 16),
        heads in proptest::collection::vec(0..18u16, 1..16),
        ahead in prop_oneof![3 => Just(0u16), 1 => any::<u16>()],
        receive: bool,
        merge: bool,
    ) {
        let mut bench = bench(Peer::default());
        let mut rings = bench.start(if merge { MERGE } else { 0 }, 2, 16);
        // The peer has a frame for every buffer.
        offer(&bench, &mut rings[1], 0, &control_frame(GUEST.0, 1, 100, 1514));
        bench.run(1, &mut rings[1]);
        let ring = &mut rings[usize::from(!receive)];
        for (n, &(address, len, flags, next)) in (0..).zip(&descriptors) {
            ring.describe(n, address, len, flags, next);
        }
        heads.iter().for_each(|&head| ring.offer(head));
        if ahead == 0 { ring.publish() } else { ring.publish_as(ahead) }
        let broken = || bench.slot.link().needs_reset();
        if receive {
            bench.slot.kick(0);
            // The device looked at the receive queue between two transmitted frames.
            for _ in 0..2 {
                offer(&bench, &mut rings[1], 0, &[1; 60]);
                bench.slot.kick(1);
                bench.interrupts.wait_until(|| rings[1].next_used().is_some() || broken());
            }
        } else {
            let all = if ahead == 0 { 1 + heads.len() as u16 } else { ahead };
            bench.slot.kick(1);
            bench.interrupts.wait_until(|| ring.used_index() == all || broken());
        }
        bench.reset();
        prop_assert!(bench.slot.link().last_offence().is_none_or(|offence| offence.what != Broken::Bug));
        prop_assert_eq!(bench.slot.status(), 0);
    }
}
