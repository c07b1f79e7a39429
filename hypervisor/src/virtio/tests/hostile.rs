//! Malformed and changing rings.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::machine::device_memory::DeviceMemory;
use crate::testing::virtio::{BUFFERS, Bench, Interrupts, MEMORY, MODERN, Ring, cases, one_of_each};
use crate::virtio::entropy::Entropy;
use crate::virtio::{Broken, Link, Queue, QueueSetup};

const SIZE: u16 = 8;
const NEXT: u32 = VRING_DESC_F_NEXT;
const WRITE: u32 = VRING_DESC_F_WRITE;
const INDIRECT: u32 = VRING_DESC_F_INDIRECT;

fn memory(bytes: u64) -> DeviceMemory {
    let view = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap();
    DeviceMemory::standing_alone(view)
}

fn queue(memory: &DeviceMemory, setup: &QueueSetup, features: u64) -> Option<Queue> {
    let link = Arc::new(Link::new(&[], Arc::new(Interrupts::default())));
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    Queue::new(0, setup, SIZE, features, memory, (kick, link))
}

/// The violation that a queue finds in a ring that `spoil` has filled.
fn offence(spoil: impl FnOnce(&mut Ring, &DeviceMemory)) -> Broken {
    let memory = memory(MEMORY);
    let mut ring = Ring::new(&memory, 0, SIZE);
    let mut queue = queue(&memory, &ring.setup, 1 << VIRTIO_RING_F_INDIRECT_DESC).unwrap();
    spoil(&mut ring, &memory);
    loop {
        match queue.take() {
            Ok(chain) => assert!(chain.is_some(), "no offence was found"),
            Err(broken) => return broken,
        }
    }
}

/// Writes an indirect table at [`BUFFERS`], and the descriptor that refers to it.
fn table(ring: &mut Ring, memory: &DeviceMemory, len: u32, flags: u32, entries: &[(u64, u32, u32, u16)]) {
    for (n, &(address, len, flags, next)) in (0u64..).zip(entries) {
        let words = [address, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48];
        memory.view().write_obj(words[0], GuestAddress(BUFFERS + n * 16)).unwrap();
        memory.view().write_obj(words[1], GuestAddress(BUFFERS + n * 16 + 8)).unwrap();
    }
    ring.describe(0, BUFFERS, len, INDIRECT | flags, 1);
    ring.offer(0);
    ring.publish();
}

#[test]
fn every_offence_is_found() {
    let one = |address, len, flags, next| {
        offence(move |ring, _| {
            ring.describe(0, address, len, flags, next);
            ring.offer(0);
            ring.publish();
        })
    };
    assert_eq!(one(BUFFERS, 1, NEXT, 0), Broken::TooLong, "a loop");
    assert_eq!(one(BUFFERS, 1, NEXT, SIZE), Broken::Descriptor(SIZE));
    for (address, len) in [(MEMORY - 1, 2), (MEMORY, 1), (u64::MAX, 1), (0, u32::MAX), (u64::MAX - 7, 16)] {
        assert_eq!(one(address, len, 0, 0), Broken::Address { address, len: len.into() });
    }
    let two = |first, second| {
        offence(move |ring, _| {
            ring.describe(0, BUFFERS, 1, first | NEXT, 1);
            ring.describe(1, BUFFERS, 1, second, 0);
            ring.offer(0);
            ring.publish();
        })
    };
    assert_eq!(two(WRITE, 0), Broken::Order);
    let head = offence(|ring, _| {
        ring.offer(SIZE);
        ring.publish();
    });
    assert_eq!(head, Broken::Descriptor(SIZE));
    for index in [SIZE + 1, 0x8000, u16::MAX] {
        assert_eq!(offence(|ring, _| ring.publish_as(index)), Broken::Ahead, "{index}");
    }
}

/// A driver that makes the same buffer available again and again: more than the ring has entries is a violation.
#[test]
fn a_driver_that_does_not_wait() {
    let memory = memory(MEMORY);
    let ring = Ring::new(&memory, 0, SIZE);
    let mut queue = queue(&memory, &ring.setup, 0).unwrap();
    ring.describe(0, BUFFERS, 1, 0, 0);
    ring.publish_as(SIZE);
    for _ in 0..SIZE {
        assert!(queue.take().unwrap().is_some());
    }
    ring.publish_as(SIZE + 1);
    assert_eq!(queue.take(), Err(Broken::Ahead));
}

#[test]
fn indirect_tables() {
    let full = [(BUFFERS, 1, NEXT, 1); 1];
    assert_eq!(offence(|r, m| table(r, m, 16, NEXT, &full)), Broken::Indirect, "in the middle of a chain");
    assert_eq!(offence(|r, m| table(r, m, 16, 0, &[(BUFFERS, 16, INDIRECT, 0)])), Broken::Indirect, "nested");
    for len in [0, 8, 24, 16 * 65536] {
        assert_eq!(offence(|r, m| table(r, m, len, 0, &full)), Broken::IndirectLength(len));
    }
    assert_eq!(offence(|r, m| table(r, m, 16, 0, &full)), Broken::Descriptor(1), "past its end");
    assert_eq!(offence(|r, m| table(r, m, 32, 0, &[(BUFFERS, 1, NEXT, 0)])), Broken::TooLong, "a loop");
    let outside = offence(|ring, _| {
        ring.describe(0, MEMORY - 8, 16, INDIRECT, 0);
        ring.offer(0);
        ring.publish();
    });
    assert_eq!(outside, Broken::Address { address: MEMORY - 8, len: 16 });
    // A chain may be as long as the queue, but not longer. Without the feature there may be no indirect table.
    for (len, entries) in [(8u16, Ok(8)), (9, Err(Broken::TooLong))] {
        let memory = memory(MEMORY);
        let mut ring = Ring::new(&memory, 0, SIZE);
        let with = 1 << VIRTIO_RING_F_INDIRECT_DESC;
        let mut queue = queue(&memory, &ring.setup, with).unwrap();
        let chain: Vec<_> = (1..=len).map(|n| (BUFFERS, 1, if n < len { NEXT } else { 0 }, n)).collect();
        table(&mut ring, &memory, u32::from(len) * 16, 0, &chain);
        assert_eq!(queue.take().map(|chain| chain.unwrap().readable().len()), entries);
    }
    let memory = memory(MEMORY);
    let mut ring = Ring::new(&memory, 0, SIZE);
    let mut queue = queue(&memory, &ring.setup, 0).unwrap();
    table(&mut ring, &memory, 16, 0, &[(BUFFERS, 1, 0, 0)]);
    assert_eq!(queue.take(), Err(Broken::Indirect));
}

/// Offers, takes and gives back a request `count` times, and then notifies the driver.
fn turn(queue: &mut Queue, ring: &mut Ring, count: u32) {
    for _ in 0..count {
        ring.offer(0);
        ring.publish();
        let chain = queue.take().unwrap().expect("it was offered");
        queue.give_back(chain.head(), 0).unwrap();
    }
    queue.notify().unwrap();
}

/// Indices have 16 bits: a notification that a driver asked for before they wrap comes after they have wrapped.
#[test]
fn notifications_across_the_wrap_of_the_indices() {
    let memory = memory(MEMORY);
    let mut ring = Ring::new(&memory, 0, SIZE);
    let interrupts = Arc::new(Interrupts::default());
    let link = Arc::new(Link::new(&[], interrupts.clone()));
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let features = 1 << VIRTIO_RING_F_EVENT_IDX;
    let mut queue = Queue::new(0, &ring.setup, SIZE, features, &memory, (kick, link)).unwrap();
    ring.describe(0, BUFFERS, 1, 0, 0);
    let store = |at: u64, value: u16| memory.view().write_obj(value, GuestAddress(at)).unwrap();
    let used_event = ring.setup.driver + 4 + u64::from(SIZE) * 2;
    let avail_event = ring.setup.device + 4 + u64::from(SIZE) * 8;
    let count = || interrupts.queues.load(Ordering::SeqCst);
    for done in 0..70_000u32 {
        let before = count();
        // The driver waits for every third one.
        let next = done.next_multiple_of(3) as u16;
        store(used_event, next);
        turn(&mut queue, &mut ring, 1);
        assert_eq!(count() - before, usize::from(next == done as u16), "after {done}");
        assert!(!queue.ask_for_kicks().unwrap());
        let asked: u16 = memory.view().read_obj(GuestAddress(avail_event)).unwrap();
        assert_eq!(asked, (done + 1) as u16, "a kick for the next one");
    }
    // So many at once that the index has the same value as before: it has passed `used_event`, whatever that is.
    let before = count();
    store(used_event, ring.used_index().wrapping_sub(1));
    turn(&mut queue, &mut ring, 1 << 16);
    assert_eq!(count() - before, 1);
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let bench = Bench::new(Entropy);
    let mut ring = Ring::new(&bench.memory, 0, SIZE);
    let link = Arc::new(Link::new(&[], bench.interrupts.clone()));
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut queue = Queue::new(0, &ring.setup, SIZE, 0, &bench.memory, (kick, link)).unwrap();
    ring.describe(0, BUFFERS, 1, 0, 0);
    let flags = GuestAddress(ring.setup.driver);
    let count = || bench.interrupts.queues.load(Ordering::SeqCst);
    for (flag, expected) in [(0u16, 1), (1, 0), (0xfffe, 1), (u16::MAX, 0)] {
        bench.memory.view().write_obj(flag, flags).unwrap();
        let before = count();
        turn(&mut queue, &mut ring, 3);
        assert_eq!(count() - before, expected, "{flag:#x}");
    }
    queue.refuse_kicks().unwrap();
    let refused: u16 = memory_flags(&bench.memory, &ring);
    queue.ask_for_kicks().unwrap();
    assert_eq!((refused, memory_flags(&bench.memory, &ring)), (1, 0));
}

fn memory_flags(memory: &DeviceMemory, ring: &Ring) -> u16 {
    memory.view().read_obj(GuestAddress(ring.setup.device)).unwrap()
}

/// Rings across regions that are adjacent for the device, but not in machine memory.
#[test]
fn a_ring_may_lie_across_regions() {
    use crate::machine::device_memory::Region;
    use crate::machine::memory::{Backing, MachineMemory, Mfn};
    let machine = Arc::new(MachineMemory::new(0, 64, Backing::Anonymous).unwrap());
    // Device page n is frame 63 - n.
    let region = |n: u64| Region { address: n * 4096, first: Mfn(63 - n), frames: 1 };
    let memory = DeviceMemory::new(&machine, &(0..60).map(region).collect::<Vec<_>>()).unwrap();
    let setup = QueueSetup { size: 1024, descriptors: 0x1f00, driver: 0x7ffe, device: 0xbff8 };
    let link = Arc::new(Link::new(&[], Arc::new(Interrupts::default())));
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut queue = Queue::new(0, &setup, 1024, 0, &memory, (kick, link)).unwrap();
    let write = |at: u64, bytes: &[u8]| memory.view().write_slice(bytes, GuestAddress(at)).unwrap();
    for n in 0..1024u64 {
        // A buffer across two pages.
        let desc = [(0x2_0ff0 + n % 8 * 0x1000).to_le_bytes(), (32 | 2u64 << 32).to_le_bytes()].concat();
        write(setup.descriptors + n * 16, &desc);
        write(setup.driver + 4 + n * 2, &(n as u16).to_le_bytes());
    }
    write(setup.driver + 2, &1024u16.to_le_bytes());
    for n in 0..1024u16 {
        let chain = queue.take().unwrap().expect("it was offered");
        assert_eq!((chain.head(), chain.writable_len()), (n, 32));
        assert_eq!(memory.scatter(chain.writable(), 0, &[n as u8; 32]), 32);
        queue.give_back(n, 32).unwrap();
    }
    assert_eq!(queue.take(), Ok(None));
    for n in 0..1024u64 {
        let mut used = [0; 8];
        memory.view().read_slice(&mut used, GuestAddress(setup.device + 4 + n * 8)).unwrap();
        assert_eq!(u64::from_le_bytes(used), n | 32 << 32);
    }
}

/// Empty buffers are legal and left out, but their descriptors count.
#[test]
fn buffers_of_no_bytes() {
    for (second, expected) in
        [((0, 0, 0), (0, 1)), ((u64::MAX, 0, 0), (0, 1)), ((u64::MAX, 0, WRITE), (0, 1))]
    {
        let memory = memory(MEMORY);
        let mut ring = Ring::new(&memory, 0, SIZE);
        let mut queue = queue(&memory, &ring.setup, 0).unwrap();
        ring.describe(0, BUFFERS, 1, WRITE | NEXT, 1);
        let (address, len, flags) = second;
        ring.describe(1, address, len, flags, 0);
        ring.offer(0);
        ring.publish();
        let chain = queue.take().unwrap().unwrap();
        assert_eq!((chain.readable().len(), chain.writable().len()), expected, "{second:?}");
    }
    let memory = memory(MEMORY);
    let mut ring = Ring::new(&memory, 0, SIZE);
    let mut queue = queue(&memory, &ring.setup, 0).unwrap();
    ring.describe(0, 0, 0, NEXT, 0);
    ring.offer(0);
    ring.publish();
    assert_eq!(queue.take(), Err(Broken::TooLong), "a loop of empty buffers is a loop");
}

/// A chain has 4 GiB at most, because lengths have 32 bits.
#[test]
fn a_chain_of_more_than_4_gib_is_refused() {
    let view = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    let memory = DeviceMemory::standing_alone(view);
    let mut ring = Ring::new(&memory, 0, SIZE);
    let mut queue = queue(&memory, &ring.setup, 1 << VIRTIO_RING_F_INDIRECT_DESC).unwrap();
    ring.describe(0, BUFFERS, 8, NEXT, 1);
    ring.describe(1, BUFFERS, u32::MAX - 7, 0, 0);
    ring.offer(0);
    ring.publish();
    assert_eq!(queue.take(), Err(Broken::TooMuch));
}

/// The addresses of the random rings, in a memory of [`SMALL`] bytes.
const SETUP: QueueSetup = QueueSetup { size: SIZE, descriptors: 0x100, driver: 0x200, device: 0x240 };
const USED_END: u64 = 0x240 + 4 + SIZE as u64 * 8 + 2;
const SMALL: u64 = 0x1000;

/// A random descriptor that is valid more often than not.
pub(crate) fn descriptor() -> impl Strategy<Value = [u64; 2]> {
    let address = prop_oneof![4 => 0u64..SMALL, 1 => any::<u64>()];
    let len = prop_oneof![4 => 0u64..64, 1 => (0u64..17).prop_map(|n| n * 16), 1 => any::<u32>().prop_map(u64::from)];
    let next = prop_oneof![8 => 0u64..10, 1 => any::<u16>().prop_map(u64::from)];
    (address, len, 0u64..8, next)
        .prop_map(|(address, len, flags, next)| [address, len | flags << 32 | next << 48])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(512), failure_persistence: None, ..ProptestConfig::default() })]

    /// For any content of the rings: a queue returns only buffers in the device's memory, and not more requests than
    /// the ring has entries; and it writes only to the used ring.
    #[test]
    fn any_ring(
        descriptors in prop::collection::vec(descriptor(), 24),
        heads in prop::collection::vec(0u16..9, 8),
        indices in prop::collection::vec(prop_oneof![8 => 0u16..12, 1 => any::<u16>()], 1..6),
        event_idx in any::<bool>(),
        held in 0usize..4,
    ) {
        let memory = memory(SMALL);
        let at = |address| GuestAddress(address);
        for (n, words) in (0u64..).zip(&descriptors) {
            // Eight in the queue's table, the others where indirect descriptors may point.
            let to = if n < 8 { SETUP.descriptors + n * 16 } else { 0x400 + (n - 8) * 16 };
            memory.view().write_obj(words[0], at(to)).unwrap();
            memory.view().write_obj(words[1], at(to + 8)).unwrap();
        }
        for (n, head) in (0u64..).zip(&heads) {
            memory.view().write_obj(*head, at(SETUP.driver + 4 + n * 2)).unwrap();
        }
        let features = 1 << VIRTIO_RING_F_INDIRECT_DESC | u64::from(event_idx) << VIRTIO_RING_F_EVENT_IDX;
        let mut queue = queue(&memory, &SETUP, features).unwrap();
        let mut out = Vec::new();
        let mut index = 0u16;
        'all: for step in indices {
            index = index.wrapping_add(step);
            memory.view().write_obj(index, at(SETUP.driver + 2)).unwrap();
            let before: Vec<u8> = snapshot(&memory);
            for _ in 0..=SIZE {
                match queue.take() {
                    Ok(Some(chain)) => {
                        let segments = chain.readable().len() + chain.writable().len();
                        prop_assert!(segments <= usize::from(SIZE) && chain.head() < SIZE);
                        for s in chain.readable().iter().chain(chain.writable()) {
                            prop_assert!(s.len > 0 && s.address + u64::from(s.len) <= SMALL);
                        }
                        out.push(chain.head());
                        prop_assert!(out.len() <= usize::from(SIZE));
                    }
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            }
            while out.len() > held {
                let head = out.remove(0);
                queue.give_back(head, 0).unwrap();
            }
            queue.notify().unwrap();
            queue.ask_for_kicks().unwrap();
            prop_assert_eq!(before, snapshot(&memory));
        }
    }

    /// The same against a device: it processes all requests or needs a reset, and can be reset.
    #[test]
    fn any_ring_against_a_device(descriptors in prop::collection::vec(descriptor(), 8), index in 0u16..12) {
        let mut bench = Bench::new(Entropy);
        let mut rings = bench.start(1 << VIRTIO_RING_F_INDIRECT_DESC, 1, SIZE);
        let ring = &mut rings[0];
        for (n, [address, rest]) in (0u16..).zip(&descriptors) {
            ring.describe(n, *address, *rest as u32, (rest >> 32) as u32 & 7, (rest >> 48) as u16);
            ring.offer(n);
        }
        ring.publish_as(index);
        bench.slot.kick(0);
        bench.interrupts.wait_until(|| {
            bench.slot.link().needs_reset() || ring.used_index() == index
        });
        bench.reset();
        prop_assert_eq!(bench.slot.status(), 0);
    }
}

/// All memory but the used ring.
fn snapshot(memory: &DeviceMemory) -> Vec<u8> {
    let mut bytes = vec![0; SMALL as usize];
    memory.view().read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes.drain(SETUP.device as usize..USED_END as usize);
    bytes
}

/// Writes random values into the rings and buffers of a working device, like another vCPU of the guest.
fn scribble(memory: &DeviceMemory, mut seed: u64, done: &AtomicBool) {
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    while !done.load(Ordering::Relaxed) {
        let (ring, what, n) = (next() % 4 * 0x1_0000 + 0x1000, next(), next() % u64::from(SIZE));
        let [descriptors, driver] = [ring, ring + 0x8000];
        let value = next();
        let (at, word) = match what % 8 {
            0 => (descriptors + n * 16, value % MEMORY),
            1 => (descriptors + n * 16, value),
            2 | 3 => (descriptors + n * 16 + 8, value & 0x0007_0003_0000_0fff),
            4 => (descriptors + n * 16 + 8, value & 0x0007_0007_0000_0ff0),
            // The beginning of the available ring, including flags and index.
            5 => (driver, (value % 8) << 32 | (value & 0x3ff) << 16),
            6 => (driver + 8, value & 0x0007_0007_0007_0007),
            _ => (BUFFERS + value % 0x1000 * 8, value),
        };
        memory.view().write_obj(word, GuestAddress(at)).unwrap();
    }
}

/// Nothing is read twice, so that values cannot change between check and use: no device fails with [`Broken::Bug`], and
/// each can be reset.
#[test]
fn memory_that_changes_while_devices_work_on_it() {
    for device in one_of_each() {
        let mut bench = Bench::of(device);
        let (kind, done) = (bench.slot.info().kind, AtomicBool::new(false));
        let (memory, count) = (bench.memory.clone(), u64::from(bench.slot.info().queues));
        std::thread::scope(|scope| {
            let scribbler = scope.spawn(|| scribble(&memory, 0x5eed + u64::from(kind), &done));
            let mut stops = 0;
            for _ in 0..200 {
                let setups: Vec<_> = (0..count)
                    .map(|n| n * 0x1_0000 + 0x1000)
                    .map(|at| QueueSetup {
                        size: SIZE,
                        descriptors: at,
                        driver: at + 0x8000,
                        device: at + 0xa000,
                    })
                    .collect();
                let features = 1 << VIRTIO_RING_F_INDIRECT_DESC | MODERN;
                bench.slot.activate(&bench.memory, features, &setups).unwrap();
                for queue in 0..20 {
                    bench.slot.kick(queue % count as u16);
                    std::thread::yield_now();
                }
                stops += usize::from(bench.slot.link().needs_reset());
                bench.reset();
                let bug = bench.slot.link().last_offence().filter(|offence| offence.what == Broken::Bug);
                assert_eq!(bug, None, "a device of type {kind}");
            }
            done.store(true, Ordering::Relaxed);
            scribbler.join().unwrap();
            assert!(stops > 0, "type {kind}: no violation was found");
        });
    }
}
