//! The console device, between a test's rings and a back end.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::*;
use crate::backend::console::backend::{NOTHING, Watch};
use crate::backend::console::unix::Socket;
use crate::testing::virtio::{BUFFERS, Bench, MODERN, Ring};

fn socket() -> (UnixStream, Bench) {
    let (ours, other) = UnixStream::pair().unwrap();
    let end = Socket::connected(other).unwrap();
    (ours, Bench::new(Console::new(Box::new(end)).unwrap()))
}

fn expect(from: &mut impl Read, text: &[u8]) {
    let mut bytes = vec![0; text.len()];
    from.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, text);
}

#[test]
fn text_goes_both_ways() {
    for features in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
        let (mut ours, mut bench) = socket();
        let mut rings = bench.start(features | F_EMERG_WRITE, 2, 8);
        let [receive, transmit] = &mut rings[..] else { unreachable!() };
        for _ in 0..20 {
            bench.put(BUFFERS, b"hello, world");
            // In several buffers, one of which is empty.
            transmit.chain(0, &[(BUFFERS, 5, false), (BUFFERS + 5, 7, false)]);
            assert_eq!(bench.run(1, transmit), (0, 0));
            expect(&mut ours, b"hello, world");
            transmit.chain(2, &[(BUFFERS, 0, false)]);
            assert_eq!(bench.run(1, transmit), (2, 0));
            receive.chain(0, &[(BUFFERS + 0x100, 3, true), (BUFFERS + 0x200, 61, true)]);
            ours.write_all(b"halt\n").unwrap();
            assert_eq!(bench.run(0, receive), (0, 5));
            assert_eq!(bench.get(BUFFERS + 0x100, 3), b"hal");
            assert_eq!(bench.get(BUFFERS + 0x200, 2), b"t\n");
        }
        assert_eq!(bench.slot.status(), 0xf);
        bench.reset();
        bench.start(features, 2, 8);
    }
}

/// More output than the device gathers at once, and than the socket takes.
#[test]
fn a_slow_reader_holds_the_transmit_queue_and_loses_nothing() {
    let (mut ours, mut bench) = socket();
    let mut rings = bench.start(0, 2, 8);
    let [receive, transmit] = &mut rings[..] else { unreachable!() };
    let text: Vec<u8> = (0..0x4_0000u32).map(|n| (n % 251) as u8).collect();
    bench.put(BUFFERS, &text);
    // Four requests, each of which has the same pages four times: 4 MiB.
    let len = text.len() as u32;
    for head in [0, 2, 4, 6] {
        transmit.chain(head, &[(BUFFERS, len, false), (BUFFERS, len, false)]);
    }
    bench.slot.kick(1);
    // Input arrives meanwhile.
    receive.chain(0, &[(BUFFERS - 16, 16, true)]);
    ours.write_all(b"typed").unwrap();
    assert_eq!(bench.run(0, receive), (0, 5));
    assert!(transmit.used_index() < 4, "the socket has no room for all of it");
    for round in 0..8 {
        let mut part = vec![0; text.len()];
        ours.read_exact(&mut part).unwrap();
        assert!(part == text, "part {round}");
    }
    let mut used = Vec::new();
    bench.interrupts.wait_until(|| {
        used.extend(std::iter::from_fn(|| transmit.next_used()));
        used.len() == 4
    });
    assert_eq!(used, [(0, 0), (2, 0), (4, 0), (6, 0)], "in order");
}

#[test]
fn a_reset_does_not_wait_for_a_reader() {
    let (_ours, mut bench) = socket();
    let mut rings = bench.start(0, 2, 8);
    for head in 0..8 {
        rings[1].chain(head, &[(BUFFERS, 0x4_0000, false)]);
    }
    bench.slot.kick(1);
    bench.reset();
    assert_eq!(bench.slot.status(), 0);
}

#[test]
fn a_guest_that_prints_to_nobody_goes_on() {
    let (ours, mut bench) = socket();
    let mut rings = bench.start(0, 2, 8);
    drop(ours);
    for head in [0, 1, 2] {
        rings[1].chain(head, &[(BUFFERS, 0x1_0000, false)]);
        assert_eq!(bench.run(1, &mut rings[1]), (u32::from(head), 0));
    }
    assert_eq!(bench.slot.status(), 0xf);
}

/// Output that was put into the ring just before the device is stopped is printed.
#[test]
fn last_words_are_printed() {
    let (mut ours, mut bench) = socket();
    let mut rings = bench.start(0, 2, 8);
    bench.put(BUFFERS, b"last words");
    rings[1].chain(0, &[(BUFFERS, 10, false)]);
    // There is no kick: the stop alone makes the worker look at the queue.
    bench.reset();
    expect(&mut ours, b"last words");
}

#[test]
fn malformed_requests_stop_the_device() {
    for (queue, write, len, what) in [(0, false, 8, "read"), (0, true, 0, "room"), (1, true, 8, "write")] {
        let (_ours, mut bench) = socket();
        let mut rings = bench.start(0, 2, 8);
        rings[queue].chain(0, &[(BUFFERS, len, write)]);
        bench.slot.kick(queue as u16);
        let Broken::Request(why) = bench.offence() else { panic!("{what}") };
        assert!(why.contains(what), "{why}");
        assert_eq!(bench.slot.status(), 0x4f);
        bench.reset();
        bench.start(0, 2, 8);
    }
}

#[test]
fn output_before_a_violation_is_printed() {
    let (mut ours, mut bench) = socket();
    let mut rings = bench.start(0, 2, 8);
    bench.put(BUFFERS, b"fine");
    rings[1].describe(0, BUFFERS, 4, 0, 0);
    rings[1].describe(1, crate::testing::virtio::MEMORY, 4, 0, 0);
    rings[1].offer(0);
    rings[1].offer(1);
    rings[1].publish();
    bench.slot.kick(1);
    assert!(matches!(bench.offence(), Broken::Address { .. }));
    expect(&mut ours, b"fine");
    assert_eq!(rings[1].used_index(), 1);
}

#[test]
fn emergency_characters_need_no_queue() {
    let (mut ours, mut bench) = socket();
    let write = |bench: &mut Bench, offset, bytes: &[u8]| bench.slot.write_config(offset, bytes);
    assert!(write(&mut bench, 8, &[b'a', 0, 0, 0]));
    assert!(write(&mut bench, 8, b"b"));
    expect(&mut ours, b"ab");
    // Writes that do not contain the register's first byte, or are outside the space.
    assert!(write(&mut bench, 9, b"xyz") && write(&mut bench, 0, &[0xff; 8]));
    assert!(!write(&mut bench, 8, b"12345") && !write(&mut bench, 12, b"1"));
    assert!(!write(&mut bench, usize::MAX, b"1"));
    let rings = bench.start(F_EMERG_WRITE, 2, 8);
    assert!(write(&mut bench, 6, &[1, 2, b'c', 4]));
    expect(&mut ours, b"c");
    // From a device that was stopped for a violation.
    rings[1].publish_as(0x8000);
    bench.slot.kick(1);
    bench.offence();
    assert!(write(&mut bench, 8, b"d"));
    expect(&mut ours, b"d");
    let (config, generation) = bench.slot.link().config();
    assert_eq!((config.bytes(), generation), (&[0; 12][..], 0), "a driver changes nothing");
}

/// While the reader does not read, the first characters are kept, up to a limit, and the vCPU's thread does not wait.
#[test]
fn emergency_characters_do_not_pile_up() {
    const MANY: usize = 20_000;
    let (mut ours, mut bench) = socket();
    for _ in 0..MANY {
        assert!(bench.slot.write_config(8, b"!"));
    }
    drop(bench);
    let mut got = Vec::new();
    ours.read_to_end(&mut got).unwrap();
    assert!(!got.is_empty() && got.len() < MANY && got.iter().all(|&b| b == b'!'), "{}", got.len());
}

/// A back end with endless input that takes all output.
struct Endless;

impl Backend for Endless {
    fn watch(&self, _: Wish) -> Watch {
        [NOTHING; 3]
    }
    fn ready(&mut self, _: &Watch) {}
    fn write(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }
    fn read(&mut self, into: &mut [u8]) -> usize {
        into.fill(b'x');
        into.len()
    }
}

/// A terminal whose size changes on demand.
struct Terminal {
    changed: vmm_sys_util::eventfd::EventFd,
    size: Size,
}

impl Backend for Terminal {
    fn watch(&self, _: Wish) -> Watch {
        [watch(std::os::fd::AsRawFd::as_raw_fd(&self.changed), libc::POLLIN), NOTHING, NOTHING]
    }
    fn ready(&mut self, _: &Watch) {
        let columns = self.changed.read().unwrap() as u16;
        self.size = Size { columns, ..self.size };
    }
    fn write(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }
    fn read(&mut self, _: &mut [u8]) -> usize {
        0
    }
    fn size(&self) -> Option<Size> {
        Some(self.size)
    }
}

#[test]
fn a_terminal_s_size_is_shown_and_its_changes_interrupt() {
    let changed = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let tell = changed.try_clone().unwrap();
    let end = Terminal { changed, size: Size { columns: 0x150, rows: 24 } };
    let mut bench = Bench::new(Console::new(Box::new(end)).unwrap());
    assert_eq!(bench.slot.info().features & 7, F_SIZE | F_EMERG_WRITE);
    assert_eq!(bench.slot.link().config().0.bytes(), [0x50, 1, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bench.start(F_SIZE, 2, 8);
    assert_eq!(bench.slot.link().config().1, 0);
    tell.write(132).unwrap();
    bench.interrupts.wait_until(|| bench.slot.link().config().1 == 1);
    assert_eq!(bench.slot.link().config().0.bytes()[..4], [132, 0, 24, 0]);
    let configs = bench.interrupts.configs.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(configs, 1);
    // A change without an active driver is seen by the next driver.
    bench.reset();
    tell.write(80).unwrap();
    bench.start(F_SIZE, 2, 8);
    bench.interrupts.wait_until(|| bench.slot.link().config().0.bytes()[0] == 80);
}

#[test]
fn a_socket_is_no_terminal() {
    let (_ours, bench) = socket();
    assert_eq!(bench.slot.info().features & 7, F_EMERG_WRITE);
    assert!(!bench.slot.accepts(MODERN | F_SIZE));
}

#[test]
fn either_queue_can_be_left_out() {
    let (mut ours, mut bench) = socket();
    let mut transmit = Ring::new(&bench.memory, 1, 8);
    let unused = crate::virtio::QueueSetup::default();
    bench.slot.activate(&bench.memory, MODERN, &[unused, transmit.setup]).unwrap();
    ours.write_all(b"nobody reads this").unwrap();
    bench.put(BUFFERS, b"but prints");
    transmit.chain(0, &[(BUFFERS, 10, false)]);
    assert_eq!(bench.run(1, &mut transmit), (0, 0));
    expect(&mut ours, b"but prints");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// However output is divided by the guest and by the reader, the same bytes arrive in the same order.
    #[test]
    fn whatever_is_printed_arrives(
        requests in prop::collection::vec(prop::collection::vec(0u32..9000, 1..4), 1..20),
        read in 1usize..6000,
    ) {
        let (mut ours, mut bench) = socket();
        let mut rings = bench.start(1 << VIRTIO_RING_F_EVENT_IDX, 2, 64);
        let text: Vec<u8> = (0..0x1_0000u32).map(|n| (n % 253) as u8).collect();
        bench.put(BUFFERS, &text);
        let (mut head, mut wanted) = (0, Vec::new());
        for lengths in &requests {
            let buffers: Vec<_> =
                lengths.iter().map(|&len| (BUFFERS + u64::from(len % 7), len, false)).collect();
            rings[1].chain(head, &buffers);
            head += lengths.len() as u16;
            for &len in lengths {
                wanted.extend_from_slice(&text[len as usize % 7..][..len as usize]);
            }
        }
        bench.slot.kick(1);
        let mut got = Vec::new();
        while got.len() < wanted.len() {
            let mut part = vec![0; read.min(wanted.len() - got.len())];
            ours.read_exact(&mut part).unwrap();
            got.extend(part);
        }
        prop_assert!(got == wanted);
        let mut used = 0;
        bench.interrupts.wait_until(|| {
            used += std::iter::from_fn(|| rings[1].next_used()).count();
            used == requests.len()
        });
    }

    /// For any content of the rings: all requests are done or the device needs a reset, and it can be reset.
    #[test]
    fn any_rings(
        queue in 0usize..2,
        descriptors in prop::collection::vec(crate::virtio::tests::hostile::descriptor(), 8),
        index in 0u16..12,
    ) {
        let mut bench = Bench::new(Console::new(Box::new(Endless)).unwrap());
        let mut rings = bench.start(1 << VIRTIO_RING_F_INDIRECT_DESC, 2, 8);
        let ring = &mut rings[queue];
        for (n, [address, rest]) in (0u16..).zip(&descriptors) {
            ring.describe(n, *address, *rest as u32, (rest >> 32) as u32 & 7, (rest >> 48) as u16);
            ring.offer(n);
        }
        ring.publish_as(index);
        bench.slot.kick(queue as u16);
        bench.interrupts.wait_until(|| bench.slot.link().needs_reset() || ring.used_index() == index);
        bench.reset();
        prop_assert_eq!(bench.slot.status(), 0);
    }

    /// For any write to the configuration space, only the register's byte is printed.
    #[test]
    fn any_write_to_the_configuration(writes in prop::collection::vec((0usize..20, prop::collection::vec(any::<u8>(), 0..14)), 0..30)) {
        let (mut ours, mut bench) = socket();
        let mut wanted = Vec::new();
        for (offset, bytes) in &writes {
            let inside = bench.slot.write_config(*offset, bytes);
            prop_assert_eq!(inside, offset + bytes.len() <= CONFIG_LEN);
            if inside && *offset <= 8 && offset + bytes.len() > 8 {
                wanted.push(bytes[8 - offset]);
            }
        }
        drop(bench);
        let mut got = Vec::new();
        ours.read_to_end(&mut got).unwrap();
        prop_assert_eq!(got, wanted);
    }
}
