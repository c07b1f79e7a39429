//! Operations on the clusters of qcow2 images. If qemu-img is installed, it checks the images afterwards.

use std::sync::atomic::{AtomicU64, Ordering};

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, Storage as _, StorageOpenOptions};

use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_DISCARD;

use super::*;
use crate::virtio::Device;

fn begin(scratch: &Scratch) -> (Bench, Ring) {
    let mut bench = Bench::new(open(&scratch.options()).unwrap());
    let sectors = u64::from_le_bytes(bench.slot.link().config().0.bytes()[..8].try_into().unwrap());
    assert_eq!(sectors, IMAGE_SECTORS);
    let ring = bench.start(FLUSH, 1, 16).remove(0);
    (bench, ring)
}

/// Sends a discard (11) or write-zeroes (13) request.
fn clear(bench: &Bench, ring: &mut Ring, kind: u32, (first, count, flags): (u64, u64, u32)) -> Answer {
    bench.put(DATA, &first.to_le_bytes());
    bench.put(DATA + 8, &(count as u32).to_le_bytes());
    bench.put(DATA + 12, &flags.to_le_bytes());
    request(bench, ring, kind, 0, &[(DATA, 16, false)])
}

/// Fills sectors with a byte, 512 sectors at a time.
fn fill(bench: &Bench, ring: &mut Ring, byte: u8, sectors: std::ops::Range<u64>) {
    bench.put(DATA, &vec![byte; 0x4_0000]);
    for first in sectors.clone().step_by(512) {
        let len = (sectors.end - first).min(512) * SECTOR;
        assert_eq!(request(bench, ring, 1, first, &[(DATA, len as u32, false)]), ok(1));
    }
}

fn sector_is(bench: &Bench, ring: &mut Ring, sector: u64, byte: u8) -> bool {
    assert_eq!(request(bench, ring, 0, sector, &[(DATA, 512, true)]), ok(513));
    bench.get(DATA, 512) == [byte; 512]
}

fn host_blocks(scratch: &Scratch) -> u64 {
    use std::os::unix::fs::MetadataExt;
    File::open(&scratch.0).unwrap().metadata().unwrap().blocks()
}

#[test]
fn an_image_keeps_what_was_flushed() {
    let scratch = qcow2_image("image.qcow2", 3);
    let (mut bench, mut ring) = begin(&scratch);
    bench.put(DATA, &[9; 8192]);
    assert_eq!(request(&bench, &mut ring, 1, 99, &[(DATA, 5000, false), (DATA, 3192, false)]), ok(1));
    assert_eq!(clear(&bench, &mut ring, 13, (100, 2, 0)), ok(1));
    assert_eq!(request(&bench, &mut ring, 4, 0, &[]), ok(1));
    // A copy of the image as after a crash has the flushed data.
    let crashed = Scratch::new("crashed.qcow2", 0);
    std::fs::copy(&scratch.0, &crashed.0).unwrap();
    is_consistent(&crashed);
    bench.reset();
    drop(bench);
    is_consistent(&scratch);
    let (bench, mut ring) = begin(&crashed);
    assert_eq!(request(&bench, &mut ring, 0, 98, &[(DATA, 4096, true)]), ok(4097));
    let expected = [vec![0; 512], vec![9; 512], vec![0; 1024], vec![9; 2048]].concat();
    assert!(bench.get(DATA, 4096) == expected);
}

#[test]
fn a_discard_gives_whole_clusters_back_and_keeps_their_neighbours() {
    let scratch = qcow2_image("discard.qcow2", 3);
    let (mut bench, mut ring) = begin(&scratch);
    let config = bench.slot.link().config().0;
    assert_eq!(config.bytes()[44..48], 128u32.to_le_bytes(), "discard_sector_alignment: a cluster");
    fill(&bench, &mut ring, 7, 0..CLUSTER_SECTORS * 16);
    assert_eq!(request(&bench, &mut ring, 4, 0, &[]), ok(1));
    let full = host_blocks(&scratch);
    // From the middle of cluster 1 to the middle of cluster 9; then the same by write-zeroes with UNMAP.
    let range = (CLUSTER_SECTORS + 5, CLUSTER_SECTORS * 8);
    assert_eq!(clear(&bench, &mut ring, 11, (range.0, range.1, 0)), ok(1));
    assert_eq!(clear(&bench, &mut ring, 13, (CLUSTER_SECTORS * 12 - 3, CLUSTER_SECTORS * 2, 1)), ok(1));
    assert_eq!(request(&bench, &mut ring, 4, 0, &[]), ok(1));
    for (sector, byte) in [
        (0, 7),
        (CLUSTER_SECTORS + 4, 7),
        (CLUSTER_SECTORS * 2, 0),
        (CLUSTER_SECTORS * 9 - 1, 0),
        (CLUSTER_SECTORS * 9 + 5, 7),
    ] {
        assert!(sector_is(&bench, &mut ring, sector, byte), "sector {sector}");
    }
    for (sector, byte) in [
        (CLUSTER_SECTORS * 12 - 4, 7),
        (CLUSTER_SECTORS * 12 - 3, 0),
        (CLUSTER_SECTORS * 14 - 4, 0),
        (CLUSTER_SECTORS * 14 - 3, 7),
    ] {
        assert!(sector_is(&bench, &mut ring, sector, byte), "sector {sector}");
    }
    // Clusters 2 to 8, and 12: eight of 64 KiB, in units of 512 bytes.
    assert!(
        host_blocks(&scratch) + 8 * CLUSTER_SECTORS <= full,
        "{full} blocks, and now {}",
        host_blocks(&scratch)
    );
    assert_eq!(clear(&bench, &mut ring, 11, (IMAGE_SECTORS - 5, 5, 0)), ok(1), "the end");
    assert_eq!(clear(&bench, &mut ring, 11, (IMAGE_SECTORS - 5, 6, 0)), IO_ERROR);
    bench.reset();
    drop(bench);
    is_consistent(&scratch);
    let path = scratch.0.to_str().unwrap();
    if let Some(map) = qemu_img(&["map", "-f", "qcow2", "--output=json", path]) {
        let gone = format!(
            "\"start\": {}, \"length\": {},",
            CLUSTER_SECTORS * 2 * SECTOR,
            CLUSTER_SECTORS * 7 * SECTOR
        );
        let line = map.lines().find(|line| line.contains(&gone));
        assert!(
            line.is_some_and(|l| l.contains("\"zero\": true, \"data\": false")),
            "{gone} is not in {map}"
        );
    }
    // Clusters that were given back are used again, so that the image does not grow.
    let (mut bench, mut ring) = begin(&scratch);
    let before = std::fs::metadata(&scratch.0).unwrap().len();
    fill(&bench, &mut ring, 8, CLUSTER_SECTORS * 100..CLUSTER_SECTORS * 108);
    assert_eq!(request(&bench, &mut ring, 4, 0, &[]), ok(1));
    assert_eq!(std::fs::metadata(&scratch.0).unwrap().len(), before);
    assert!(
        sector_is(&bench, &mut ring, CLUSTER_SECTORS * 2, 0)
            && sector_is(&bench, &mut ring, CLUSTER_SECTORS * 101, 8)
    );
    bench.reset();
    drop(bench);
    is_consistent(&scratch);
}

/// Version 2 of the format has no clusters of zeroes.
#[test]
fn an_old_image_takes_zeroes_and_no_discards() {
    let scratch = qcow2_image("old.qcow2", 2);
    let block = open(&scratch.options()).unwrap();
    assert_eq!(block.info().features & 1 << VIRTIO_BLK_F_DISCARD, 0);
    drop(block);
    let (mut bench, mut ring) = begin(&scratch);
    fill(&bench, &mut ring, 7, 0..CLUSTER_SECTORS * 3);
    for flags in [0, 1] {
        assert_eq!(
            clear(&bench, &mut ring, 13, (CLUSTER_SECTORS - 1 + u64::from(flags), CLUSTER_SECTORS, flags)),
            ok(1)
        );
    }
    assert_eq!(clear(&bench, &mut ring, 11, (0, 1, 0)), UNSUPPORTED);
    for (sector, byte) in [
        (CLUSTER_SECTORS - 2, 7),
        (CLUSTER_SECTORS - 1, 0),
        (CLUSTER_SECTORS * 2 - 1, 0),
        (CLUSTER_SECTORS * 2, 7),
    ] {
        assert!(sector_is(&bench, &mut ring, sector, byte), "sector {sector}");
    }
    bench.reset();
    drop(bench);
    is_consistent(&scratch);
}

/// One half of a cluster is written while the other half is zeroed: both have an effect.
#[test]
fn zeroes_and_writes_side_by_side() {
    let scratch = qcow2_image("beside.qcow2", 3);
    let options = scratch.options();
    let file = file::open(&options).unwrap();
    let image = Qcow2Image::open(file, &options).unwrap();
    let cluster = CLUSTER_SECTORS * SECTOR;
    // Both begin at the same moment. They spin, because waking a thread takes longer than the operations.
    let begun = [AtomicU64::new(0), AtomicU64::new(0)];
    let meet = |me: usize, n: u64| {
        begun[me].store(n + 1, Ordering::Release);
        while begun[1 - me].load(Ordering::Acquire) <= n {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut data = vec![7u8; 0x8000];
            for n in 0..1024 {
                let mut buffers = [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() }];
                meet(0, n);
                image.write(&mut buffers, n * cluster).unwrap();
            }
        });
        for n in 0..1024 {
            meet(1, n);
            // Each time a little later, to meet each step of the write.
            (0..n % 128 * 40).for_each(|_| std::hint::spin_loop());
            image.zero(n * cluster + cluster / 2, cluster / 2, n % 2 == 0).unwrap();
        }
    });
    for n in 0..1024 {
        let mut data = [0u8; 512];
        let mut buffers = [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: 512 }];
        image.read(&mut buffers, n * cluster).unwrap();
        assert!(data == [7; 512], "cluster {n} has lost what was written");
    }
}

/// A program that is killed between two requests leaves a consistent image: what it has written is in clusters that are
/// counted.
#[test]
fn an_image_is_consistent_after_every_request() {
    let scratch = Scratch::new("every.qcow2", 0);
    let storage = Storage::open(StorageOpenOptions::new().write(true).filename(&scratch.0)).unwrap();
    let builder = Qcow2::<Storage>::create_builder(storage).cluster_size(512).refcount_width(64);
    builder.size(16 << 20).create().unwrap();
    let options = scratch.options();
    for direct in [false, true] {
        let options = Options { direct, ..options.clone() };
        // The file system may not support O_DIRECT.
        let Ok(lock) = file::open(&options) else { continue };
        let disk = Qcow2Image::open(lock, &options).unwrap();
        let right = || {
            let checked = check(&File::open(&scratch.0).unwrap(), false, true);
            checked.map(drop).unwrap_or_else(|fault| panic!("{fault}"));
        };
        for n in 0..64 {
            let mut data = vec![n as u8 | 1; 0x3000];
            let mut buffers = [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() }];
            disk.write(&mut buffers, n * 0x3_4000 + 512).unwrap();
            right();
            disk.zero(n * 0x3_4000 + 0x1_0000, 0x1_0000, n % 2 == 0).unwrap();
            right();
        }
        disk.discard(0, 1 << 20).unwrap();
        right();
    }
}

/// A discard affects this image only: data of a backing file do not become visible again, and data of a snapshot stay.
#[test]
fn a_discard_keeps_shared_clusters() {
    let base = qcow2_image("base.qcow2", 3);
    let (mut bench, mut ring) = begin(&base);
    fill(&bench, &mut ring, 5, 0..CLUSTER_SECTORS * 8);
    bench.reset();
    drop(bench);
    let scratch = Scratch::new("overlay.qcow2", 0);
    let (path, under) = (scratch.0.to_str().unwrap(), base.0.to_str().unwrap());
    if qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", under, path]).is_none() {
        return;
    }
    let before = std::fs::read(&base.0).unwrap();
    let (mut bench, mut ring) = begin(&scratch);
    fill(&bench, &mut ring, 6, 0..CLUSTER_SECTORS * 4);
    bench.reset();
    drop(bench);
    qemu_img(&["snapshot", "-c", "kept", path]);
    let (mut bench, mut ring) = begin(&scratch);
    // Clusters of the snapshot, of the backing file, and of the image alone.
    fill(&bench, &mut ring, 7, CLUSTER_SECTORS * 2..CLUSTER_SECTORS * 3);
    for first in (0..CLUSTER_SECTORS * 8).step_by(CLUSTER_SECTORS as usize) {
        let unmapped = if first % (CLUSTER_SECTORS * 2) == 0 { (11, 0) } else { (13, 1) };
        assert_eq!(clear(&bench, &mut ring, unmapped.0, (first, CLUSTER_SECTORS, unmapped.1)), ok(1));
        assert!(sector_is(&bench, &mut ring, first + 3, 0), "sector {first} has something that was below");
    }
    bench.reset();
    drop(bench);
    is_consistent(&scratch);
    assert!(std::fs::read(&base.0).unwrap() == before, "the backing file was written");
    qemu_img(&["snapshot", "-a", "kept", path]);
    let (mut bench, mut ring) = begin(&scratch);
    for (sector, byte) in [
        (0, 6),
        (CLUSTER_SECTORS * 2 + 1, 6),
        (CLUSTER_SECTORS * 4 - 1, 6),
        (CLUSTER_SECTORS * 4, 5),
        (CLUSTER_SECTORS * 8, 0),
    ] {
        assert!(sector_is(&bench, &mut ring, sector, byte), "sector {sector} of the snapshot");
    }
    bench.reset();
    drop(bench);
    is_consistent(&scratch);
}

/// An image with O_DIRECT, and unaligned buffers.
#[test]
fn an_image_with_direct_io() {
    let scratch = qcow2_image("direct.qcow2", 3);
    let options = Options { direct: true, ..scratch.options() };
    if file::open(&options).is_err() {
        return crate::testing::skip::skip(
            "direct-io",
            "the file system of the temporary directory has no O_DIRECT",
        );
    }
    let mut bench = Bench::new(open(&options).unwrap());
    let mut ring = bench.start(FLUSH, 1, 16).remove(0);
    bench.put(DATA + 1, &[9; 3000]);
    bench.put(DATA + 0x1003, &[9; 2120]);
    let data = [(DATA + 1, 3000, false), (DATA + 0x1003, 2120, false)];
    assert_eq!(request(&bench, &mut ring, 1, 125, &data), ok(1));
    assert_eq!(clear(&bench, &mut ring, 13, (126, 1, 0)), ok(1));
    assert_eq!(clear(&bench, &mut ring, 11, (CLUSTER_SECTORS * 8, CLUSTER_SECTORS, 0)), ok(1));
    assert_eq!(request(&bench, &mut ring, 4, 0, &[]), ok(1));
    let data = [(DATA + 0x2001, 3000, true), (DATA + 0x3005, 3145, true)];
    assert_eq!(request(&bench, &mut ring, 0, 124, &data), Answer { status: 1, written: 0 }, "half a sector");
    let data = [(DATA + 0x2001, 3000, true), (DATA + 0x3005, 3144, true)];
    assert_eq!(request(&bench, &mut ring, 0, 124, &data), ok(6145));
    let found = [bench.get(DATA + 0x2001, 3000), bench.get(DATA + 0x3005, 3144)].concat();
    let expected: Vec<u8> = [0, 9, 0, 9, 9, 9, 9, 9, 9, 9, 9, 0].into_iter().flat_map(|b| [b; 512]).collect();
    assert!(found == expected);
    bench.reset();
    drop(bench);
    is_consistent(&scratch);
}
