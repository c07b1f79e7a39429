//! A disk, driven by a test instead of a guest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_DESC_F_INDIRECT,
};

mod model;
mod resets;
mod stable_storage;

use super::*;
use crate::backend::disk::image::Image;
use crate::backend::disk::{Locked, Options, RawImage};
use crate::testing::disk::*;
use crate::testing::virtio::{BUFFERS, Bench, Ring};
use crate::virtio::Broken;

#[test]
fn written_data_is_read_and_is_in_the_file() {
    let scratch = Scratch::new("rw", SECTORS * SECTOR);
    for (n, mut bench) in (1u8..).zip(benches(&scratch)) {
        let mut rings = bench.start(FLUSH | 1 << VIRTIO_RING_F_EVENT_IDX, 1, 16);
        let ring = &mut rings[0];
        bench.put(DATA, &[n; 1024]);
        bench.put(DATA + 0x3000, &[n ^ 0xff; 512]);
        let data = [(DATA, 1024, false), (DATA + 0x3000, 512, false)];
        assert_eq!(request(&bench, ring, 1, 7, &data), ok(1));
        assert_eq!(request(&bench, ring, 4, 0, &[]), ok(1), "flush");
        let mut stored = [0; 1536];
        File::open(&scratch.0).unwrap().read_exact_at(&mut stored, 7 * SECTOR).unwrap();
        assert!(stored[..1024] == [n; 1024] && stored[1024..] == [n ^ 0xff; 512]);
        assert_eq!(
            request(&bench, ring, 0, 8, &[(DATA + 0x5000, 100, true), (DATA + 0x6000, 924, true)]),
            ok(1025)
        );
        assert!(bench.get(DATA + 0x5000, 100) == [n; 100]);
        assert!(bench.get(DATA + 0x6000 + 412, 512) == [n ^ 0xff; 512]);
        assert_eq!(request(&bench, ring, 8, 0, &[(DATA, 20, true)]), ok(21), "an identity");
        assert!(bench.get(DATA, 14) == b"paravane-disk-");
        bench.reset();
    }
}

#[test]
fn ranges_become_zeroes() {
    let scratch = Scratch::new("zero", SECTORS * SECTOR);
    for mut bench in benches(&scratch) {
        let mut rings = bench.start(FLUSH, 1, 16);
        let ring = &mut rings[0];
        for (kind, flags) in [(11u32, 0u32), (13, 0), (13, 1)] {
            bench.put(DATA, &[7; 4096]);
            assert_eq!(request(&bench, ring, 1, 16, &[(DATA, 4096, false)]), ok(1));
            bench.put(DATA, &16u64.to_le_bytes());
            bench.put(DATA + 8, &8u32.to_le_bytes());
            bench.put(DATA + 12, &flags.to_le_bytes());
            assert_eq!(request(&bench, ring, kind, 0, &[(DATA, 16, false)]), ok(1));
            assert_eq!(request(&bench, ring, 0, 16, &[(DATA, 4096, true)]), ok(4097));
            assert!(bench.get(DATA, 4096) == [0; 4096] || kind == 11);
        }
        for (sector, count, flags, kind, answer) in [
            (SECTORS - 1, 2u32, 0u32, 13, IO_ERROR),
            (u64::MAX, 1, 0, 13, IO_ERROR),
            (0, MOST_SECTORS + 1, 0, 13, IO_ERROR),
            (0, 1, 2, 13, UNSUPPORTED),
            (0, 1, 1, 11, UNSUPPORTED),
        ] {
            bench.put(DATA, &sector.to_le_bytes());
            bench.put(DATA + 8, &count.to_le_bytes());
            bench.put(DATA + 12, &flags.to_le_bytes());
            assert_eq!(request(&bench, ring, kind, 0, &[(DATA, 16, false)]), answer);
        }
        bench.reset();
    }
}

#[test]
fn impossible_requests_get_an_error_status() {
    let scratch = Scratch::new("bad", SECTORS * SECTOR);
    for mut bench in benches(&scratch) {
        let mut rings = bench.start(FLUSH, 1, 16);
        let ring = &mut rings[0];
        assert_eq!(request(&bench, ring, 99, 0, &[]), UNSUPPORTED);
        for (sector, len) in
            [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511)]
        {
            let read = request(&bench, ring, 0, sector, &[(DATA, len, true)]);
            assert_eq!(read, Answer { status: 1, written: 0 }, "{len} bytes at {sector}");
            assert_eq!(request(&bench, ring, 1, sector, &[(DATA, len, false)]), IO_ERROR);
        }
        assert_eq!(request(&bench, ring, 0, 0, &[]), ok(1), "reading no bytes succeeds");
        // The file is truncated: the guest gets an error, and goes on.
        File::options().write(true).open(&scratch.0).unwrap().set_len(1024).unwrap();
        let short = request(&bench, ring, 0, 1, &[(DATA, 1024, true)]);
        assert_eq!(short, Answer { status: 1, written: 0 });
        assert_eq!(request(&bench, ring, 0, 0, &[(DATA, 1024, true)]), ok(1025));
        File::options().write(true).open(&scratch.0).unwrap().set_len(SECTORS * SECTOR).unwrap();
        bench.reset();
    }
}

#[test]
fn malformed_requests_stop_the_disk() {
    let scratch = Scratch::new("broken", SECTORS * SECTOR);
    let chains: [&[(u64, u32, bool)]; 5] = [
        &[(HEADER, 15, false), (STATUS, 1, true)],
        &[(HEADER, 15, false), (HEADER + 15, 0, false), (STATUS, 1, true)],
        &[(HEADER, 16, false)],
        &[(HEADER, 16, false), (STATUS, 0, true)],
        &[(STATUS, 1, true)],
    ];
    for chain in chains {
        for mut bench in benches(&scratch) {
            let mut rings = bench.start(FLUSH, 1, 16);
            rings[0].chain(0, chain);
            bench.slot.kick(0);
            assert!(matches!(bench.offence(), Broken::Request(_)));
            assert_eq!(rings[0].used_index(), 0);
            bench.reset();
        }
    }
}

#[test]
fn many_requests_in_flight_and_indirect_tables() {
    let scratch = Scratch::new("deep", SECTORS * SECTOR);
    let file = File::options().write(true).open(&scratch.0).unwrap();
    for sector in 0..32u64 {
        file.write_all_at(&[sector as u8; 512], sector * SECTOR).unwrap();
    }
    for mut bench in benches(&scratch) {
        let features = FLUSH | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        let mut rings = bench.start(features, 1, 32);
        let ring = &mut rings[0];
        for n in 0..32u16 {
            let at = BUFFERS + u64::from(n) * 0x400;
            bench.put(at, &[0; 8]);
            bench.put(at + 8, &u64::from(n).to_le_bytes());
            let table = BUFFERS + 0x4_0000 + u64::from(n) * 64;
            let desc = |slot: u64, address: u64, len: u32, flags: u16, next: u16| {
                bench.put(table + slot * 16, &address.to_le_bytes());
                bench.put(table + slot * 16 + 8, &len.to_le_bytes());
                bench.put(table + slot * 16 + 12, &flags.to_le_bytes());
                bench.put(table + slot * 16 + 14, &next.to_le_bytes());
            };
            desc(0, at, 16, 1, 1);
            desc(1, at + 0x200, 512, 3, 2);
            desc(2, at + 0x100, 1, 2, 0);
            ring.describe(n, table, 48, VRING_DESC_F_INDIRECT, 0);
            ring.offer(n);
        }
        ring.publish();
        bench.slot.kick(0);
        let mut seen = Vec::new();
        bench.interrupts.wait_until(|| {
            seen.extend(std::iter::from_fn(|| ring.next_used()));
            seen.len() == 32
        });
        for n in 0..32u64 {
            assert!(seen.contains(&(n as u32, 513)));
            assert!(bench.get(BUFFERS + n * 0x400 + 0x200, 512) == vec![n as u8; 512], "{n}");
        }
        bench.reset();
    }
}

#[test]
fn several_queues() {
    let scratch = Scratch::new("queues", SECTORS * SECTOR);
    let qcow2 = qcow2_image("queues.qcow2", 3);
    for options in [scratch.options(), qcow2.options()] {
        let mut bench = Bench::new(Block::new(Disk::open(&options).unwrap(), 4, None).unwrap());
        assert_ne!(bench.slot.info().features & 1 << VIRTIO_BLK_F_MQ, 0);
        assert_eq!(bench.slot.link().config().0.bytes()[34..36], [4, 0], "num_queues");
        // A driver may use fewer queues than there are.
        for count in [4, 3, 1] {
            let mut rings = bench.start(FLUSH | 1 << VIRTIO_BLK_F_MQ, count, 16);
            for n in 0..count as u16 {
                let at = BUFFERS + u64::from(n) * 0x1000;
                bench.put(at, &[&1u32.to_le_bytes()[..], &[0; 4], &u64::from(n).to_le_bytes()].concat());
                bench.put(at + 16, &[n as u8 + count as u8; 512]);
                rings[usize::from(n)]
                    .chain(0, &[(at, 16, false), (at + 16, 512, false), (at + 0x800, 1, true)]);
                bench.slot.kick(n);
            }
            for (n, ring) in (0u64..).zip(&mut rings) {
                let mut used = None;
                bench.interrupts.wait_until(|| {
                    used = used.or_else(|| ring.next_used());
                    used.is_some()
                });
                assert_eq!((used, bench.get(BUFFERS + n * 0x1000 + 0x800, 1)), (Some((0, 1)), vec![0]));
            }
            // Data that was written by one queue is flushed and read by another.
            let all: Vec<u8> = (0..count as u8).flat_map(|n| [n + count as u8; 512]).collect();
            assert_eq!(request(&bench, &mut rings[0], 4, 0, &[]), ok(1));
            let read = request(&bench, &mut rings[0], 0, 0, &[(DATA, all.len() as u32, true)]);
            assert_eq!(read, ok(all.len() as u32 + 1));
            assert!(bench.get(DATA, all.len()) == all);
            bench.reset();
        }
    }
}

/// An image whose operations fail.
struct Failing(Mutex<io::ErrorKind>);

impl Image for Failing {
    fn bytes(&self) -> u64 {
        SECTORS * SECTOR
    }
    fn limits(&self) -> Limits {
        Limits { block: SECTOR, discard: Some(4096) }
    }
    fn read(&self, _: &mut [libc::iovec], _: u64) -> io::Result<()> {
        Err((*self.0.lock().unwrap()).into())
    }
    fn write(&self, _: &mut [libc::iovec], _: u64) -> io::Result<()> {
        Err((*self.0.lock().unwrap()).into())
    }
    fn flush(&self) -> io::Result<()> {
        Err((*self.0.lock().unwrap()).into())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err((*self.0.lock().unwrap()).into())
    }
    fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err((*self.0.lock().unwrap()).into())
    }
}

#[test]
fn the_hosts_errors_are_statuses() {
    let options = Scratch::new("errors", 0).options();
    let mut bench =
        Bench::new(block(Arc::new(Failing(Mutex::new(io::ErrorKind::StorageFull))), None, &options));
    let mut rings = bench.start(FLUSH, 1, 16);
    let ring = &mut rings[0];
    assert_eq!(request(&bench, ring, 1, 0, &[(DATA, 512, false)]), IO_ERROR);
    assert_eq!(request(&bench, ring, 0, 0, &[(DATA, 512, true)]), Answer { status: 1, written: 0 });
    assert_eq!(request(&bench, ring, 4, 0, &[]), IO_ERROR);
    assert_eq!(bench.slot.status(), 0xf, "the device goes on");
    // A full disk: every write to /dev/full fails with ENOSPC.
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let full = RawImage::new(Locked(full), false).unwrap();
    assert_eq!(full.bytes(), 0);
    let mut byte = 7u8;
    let mut buffers = [libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 }];
    let error = full.write(&mut buffers, 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let scratch = Scratch::new("ro", SECTORS * SECTOR);
    let options = Options { readonly: true, ..scratch.options() };
    let block = open(&options).unwrap();
    let offered = block.info().features;
    assert!(offered & 1 << VIRTIO_BLK_F_RO != 0 && offered & 1 << VIRTIO_BLK_F_DISCARD == 0);
    let mut bench = Bench::new(block);
    let mut rings = bench.start(FLUSH, 1, 16);
    let ring = &mut rings[0];
    assert_eq!(request(&bench, ring, 1, 0, &[(DATA, 512, false)]), IO_ERROR);
    assert_eq!(request(&bench, ring, 13, 0, &[(DATA, 16, false)]), IO_ERROR);
    assert_eq!(request(&bench, ring, 0, 0, &[(DATA, 512, true)]), ok(513));
}

/// The result of a request does not depend on how it is divided into descriptors.
#[test]
fn descriptors_of_any_size() {
    let scratch = Scratch::new("cut", SECTORS * SECTOR);
    for mut bench in benches(&scratch) {
        let mut rings = bench.start(FLUSH, 1, 256);
        let ring = &mut rings[0];
        for (n, cut) in (1u8..).zip([1u32, 3, 7, 15, 16, 17, 511]) {
            // Header and data are contiguous, and divided into descriptors. The status is the last byte.
            bench.put(HEADER, &[&1u32.to_le_bytes()[..], &[0; 4], &9u64.to_le_bytes(), &[n; 1024]].concat());
            bench.put(STATUS + 0x600, &[0xff]);
            let pieces = |from: u64, len: u32, write: bool, step: u32| {
                (0..len)
                    .step_by(step as usize)
                    .map(move |at| (from + u64::from(at), step.min(len - at), write))
            };
            // As many small descriptors as fit into the queue, then large ones.
            let many = cut * 150;
            let header: Vec<_> = pieces(HEADER, many.min(1040), false, cut).collect();
            let rest = pieces(HEADER + u64::from(many), 1040u32.saturating_sub(many), false, 512);
            let all: Vec<_> = header.into_iter().chain(rest).chain([(STATUS + 0x600, 1, true)]).collect();
            ring.chain(0, &all);
            assert_eq!(bench.run(0, ring), (0, 1));
            assert_eq!(bench.get(STATUS + 0x600, 1), [0]);
            bench.put(HEADER, &0u32.to_le_bytes());
            bench.put(DATA, &[0xee; 1025]);
            let many = cut * 150;
            let data: Vec<_> = pieces(DATA, many.min(1025), true, cut).collect();
            let rest = pieces(DATA + u64::from(many), 1025u32.saturating_sub(many), true, 512);
            let header = pieces(HEADER, 16, false, cut.max(2));
            ring.chain(0, &header.chain(data).chain(rest).collect::<Vec<_>>());
            assert_eq!(bench.run(0, ring), (0, 1025));
            assert!(bench.get(DATA, 1025) == [&[n; 1024][..], &[0]].concat(), "pieces of {cut}");
        }
        bench.reset();
    }
}

#[test]
fn an_identity_in_less_room_and_in_none() {
    let scratch = Scratch::new("identity", SECTORS * SECTOR);
    for mut bench in benches(&scratch) {
        let mut rings = bench.start(FLUSH, 1, 16);
        for room in [0, 1, 5, 19, 20, 21, 512] {
            bench.put(DATA, &[0xee; 32]);
            let data = [(DATA, room, true)];
            let answer = request(&bench, &mut rings[0], 8, u64::MAX, &data);
            assert_eq!(answer, ok(if room <= 20 { room + 1 } else { 20 }));
            let part = room.min(14) as usize;
            assert!(bench.get(DATA, part) == b"paravane-disk-"[..part]);
            assert!(room > 20 || bench.get(DATA + u64::from(room), 1) == [0xee]);
        }
        bench.reset();
    }
}

/// Requests whose buffers are the rings themselves harm only the driver: the device works or needs a reset.
#[test]
fn requests_for_the_rings_themselves() {
    let scratch = Scratch::new("rings", SECTORS * SECTOR);
    for mut bench in benches(&scratch) {
        for round in 0..4 {
            let mut rings = bench.start(FLUSH, 1, 16);
            let (setup, ring) = (rings[0].setup, &mut rings[0]);
            bench.put(HEADER, &[0; 16]);
            let target = [setup.descriptors, setup.driver, setup.device, setup.device + 2][round];
            // The data on the disk becomes an index: 0x0101 used or available buffers.
            let file = File::options().write(true).open(&scratch.0).unwrap();
            file.write_all_at(&[1; 512], 0).unwrap();
            ring.chain(0, &[(HEADER, 16, false), (target, 512, true), (STATUS, 1, true)]);
            bench.slot.kick(0);
            bench.interrupts.wait_until(|| {
                bench.slot.link().needs_reset() || bench.get(STATUS, 1) == [0] && ring.used_index() != 0
            });
            bench.reset();
            assert_eq!(bench.slot.status(), 0);
            bench.put(STATUS, &[0xff]);
        }
        // Afterwards the device works as before.
        let mut rings = bench.start(FLUSH, 1, 16);
        assert_eq!(request(&bench, &mut rings[0], 0, 0, &[(DATA, 512, true)]), ok(513));
        bench.reset();
    }
}
