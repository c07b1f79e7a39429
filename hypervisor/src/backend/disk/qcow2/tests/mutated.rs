//! Images with a few changed bytes anywhere in their tables: each is refused, or behaves as a disk. A write may not
//! change anything else, neither in the image nor in its snapshot.

use proptest::prelude::*;

use super::damaged::stored;
use super::*;
use crate::testing::qcow2::*;

/// A change: an offset, and a value of 8 bytes or of one byte.
#[derive(Clone, Debug)]
enum Change {
    Byte(usize, u8),
    Word(usize, u64),
}

fn change() -> impl Strategy<Value = Change> {
    // Offsets that are in use in the image, with the flags of table entries.
    let flags = prop_oneof![Just(0), Just(COPIED), Just(1), Just(1 << 62), Just(COPIED | 1)];
    let value = (0..CLUSTERS as u64 + 2, flags, prop_oneof![4 => Just(0), 1 => 0..512u64]);
    let value = value.prop_map(|(cluster, flags, more)| (cluster * CLUSTER as u64) | flags | more);
    let place = prop_oneof![
        (0..14usize).prop_map(|n| n * 8),
        (0..3usize).prop_map(|n| REFTABLE + n * 8),
        (0..3usize).prop_map(|n| REFBLOCK + n * 8),
        (0..3usize).prop_map(|n| L1 + n * 8),
        (0..6usize).prop_map(|n| L2 + n * 8),
        (0..3usize).prop_map(|n| SHARED_L2 + n * 8),
        (0..6usize).prop_map(|n| SNAPSHOTS + n * 8),
        (0..3usize).prop_map(|n| SNAPSHOT_L1 + n * 8),
    ];
    prop_oneof![
        (place.clone(), value).prop_map(|(at, value)| Change::Word(at, value)),
        (place.clone(), any::<u64>()).prop_map(|(at, value)| Change::Word(at, value)),
        (place, 0..8usize, any::<u8>()).prop_map(|(at, n, byte)| Change::Byte(at + n, byte)),
    ]
}

/// An operation of a guest on a range of sectors: read or write, discard, write-zeroes.
type Action = (u8, u64, u64);

fn action() -> impl Strategy<Value = Action> {
    (0..5u8, 0..DISK / 512)
        .prop_flat_map(|(what, from)| (Just(what), Just(from), 1..=(DISK / 512 - from).min(9)))
}

fn read(disk: &Qcow2Image) -> io::Result<Vec<u8>> {
    let mut data = vec![0u8; DISK as usize];
    // The first 64 KiB of the disk, in one buffer.
    disk.read(&mut [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() }], 0)?;
    Ok(data)
}

/// Applies an operation to the disk and to the model. Returns false if the disk reports an error; the content of the
/// range is then unknown.
fn act(disk: &Qcow2Image, model: &mut [Option<u8>], (what, from, count): Action) -> bool {
    let (offset, len) = (from * 512, count * 512);
    let byte = what.wrapping_mul(37).wrapping_add(from as u8) | 1;
    let mut data = vec![byte; len as usize];
    let mut buffers = [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() }];
    let (done, value) = match what {
        0 | 1 => (disk.write(&mut buffers, offset), Some(byte)),
        2 => (disk.discard(offset, len), None),
        3 => (disk.zero(offset, len, false), Some(0)),
        _ => (disk.zero(offset, len, true), Some(0)),
    };
    model[offset as usize..][..len as usize].fill(value.filter(|_| done.is_ok()));
    done.is_ok()
}

fn agrees(held: &[u8], model: &[Option<u8>]) -> bool {
    held.iter().zip(model).all(|(held, model)| model.is_none_or(|model| model == *held))
}

/// The offsets and contents of the clusters that hold the snapshot's tables and data.
fn of_the_snapshot(image: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let mut places = vec![0, be64(image, 64) as usize];
    if be32(image, 60) > 0 {
        let l1 = be64(image, places[1]) as usize;
        places.push(l1);
        for n in 0..(be32(image, places[1] + 8) as usize).min(64) {
            let l2 = (be64(image, l1 + n * 8) & OFFSET) as usize;
            if l2 != 0 {
                places.push(l2);
                let entries = (0..64).map(|n| be64(image, l2 + n * 8));
                places.extend(
                    entries.filter(|entry| entry & 1 << 62 == 0).map(|entry| (entry & OFFSET) as usize),
                );
            }
        }
    }
    let inside = |at: &usize| *at != 0 && *at + CLUSTER <= image.len();
    places.into_iter().filter(inside).map(|at| (at, image[at..at + CLUSTER].to_vec())).collect()
}

fn refused_or_a_disk(name: &str, changes: &[Change], actions: &[Action]) -> Result<bool, TestCaseError> {
    let mut bytes = image();
    for change in changes {
        match *change {
            Change::Byte(at, byte) => bytes[at] = byte,
            Change::Word(at, value) => put(&mut bytes, at, value.to_be_bytes()),
        }
    }
    let scratch = stored(name, &bytes);
    let options = scratch.options();
    let opened = Qcow2Image::open(file::open(&options).unwrap(), &options);
    let Ok(disk) = opened else {
        prop_assert!(std::fs::read(&scratch.0).unwrap() == bytes, "refused, and written to");
        return Ok(false);
    };
    prop_assert!(recount(&bytes).is_ok(), "{:?}", recount(&bytes));
    if disk.bytes() != DISK {
        return Ok(true);
    }
    let opened = std::fs::read(&scratch.0).unwrap();
    // Reading a compressed cluster that cannot be decompressed is an error.
    let Ok(held) = read(&disk) else { return Ok(true) };
    let mut model: Vec<_> = held.into_iter().map(Some).collect();
    for action in actions {
        act(&disk, &mut model, *action);
        if let Ok(held) = read(&disk) {
            prop_assert!(agrees(&held, &model), "after {action:?}");
        }
    }
    drop(disk);
    let now = std::fs::read(&scratch.0).unwrap();
    prop_assert!(
        now[..24] == opened[..24] && now[60..CLUSTER] == opened[60..CLUSTER],
        "the header is another"
    );
    prop_assert!(recount(&now).is_ok(), "{:?}", recount(&now));
    for (at, was) in of_the_snapshot(&opened) {
        prop_assert!(now[at..at + CLUSTER] == was, "the snapshot's cluster at {at:#x} is another");
    }
    let disk = Qcow2Image::open(file::open(&options).unwrap(), &options);
    prop_assert!(disk.is_ok(), "it is not opened again: {}", disk.err().unwrap());
    Ok(true)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_image_with_changed_tables_is_refused_or_is_a_disk(
        changes in prop::collection::vec(change(), 0..4),
        actions in prop::collection::vec(action(), 1..12),
    ) {
        refused_or_a_disk("mutated.qcow2", &changes, &actions)?;
    }
}

/// The property above is not trivial: some changed images are accepted.
#[test]
fn some_changed_images_are_used() {
    let actions = [(0, 0, 9), (2, 3, 4), (0, 60, 9)];
    let used = |changes: &[Change]| refused_or_a_disk("mutated-used.qcow2", changes, &actions).unwrap();
    assert!(used(&[]));
    // A refcount that is too high, and a cluster to which no entry refers any more.
    assert!(used(&[Change::Word(REFBLOCK + 24, u64::MAX)]) && used(&[Change::Word(L2, 0)]));
    assert!(!used(&[Change::Word(REFBLOCK, 0)]));
    // A snapshot with an empty L1 table, whose offset is inside a cluster that holds the snapshot's long name.
    assert!(used(&[Change::Word(SNAPSHOTS + 8, 512), Change::Byte(SNAPSHOTS + 7, 1)]));
    // A second snapshot without a name, in the cluster of the first.
    assert!(used(&[Change::Byte(63, 2)]));
}
