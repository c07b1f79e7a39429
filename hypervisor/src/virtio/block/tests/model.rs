//! Random requests, many at a time, compared with a model of the disk.
//!
//! Each request of a batch has its own sectors, which share blocks and clusters with those of its neighbours: no
//! request may have an effect on another one's sectors.

use proptest::prelude::*;

use super::*;

/// The number of requests at a time.
const LANES: u64 = 16;
/// Sectors of each: not a multiple of a cluster's sectors.
const LANE: u64 = 12;
/// Sectors in a cluster of the qcow2 image.
const CLUSTER: usize = 8;
const ALL: u64 = LANES * LANE;
/// Bytes of guest memory for each, and the offset of the status in it.
const ROOM: u64 = 0x4000;
const STATUS_AT: u64 = 0x3f00;

#[derive(Clone, Copy, Debug)]
enum What {
    Read,
    Write(u8),
    Zero { unmap: bool },
    Discard,
    Flush,
}

/// A request for sectors of a lane: kind, first sector, number of sectors, offset of the buffer, and length of each
/// descriptor's part of it.
type Action = (What, u64, u64, u64, u32);

fn action() -> impl Strategy<Value = Action> {
    let what = prop_oneof![
        3 => Just(What::Read),
        4 => (1u8..).prop_map(What::Write),
        1 => any::<bool>().prop_map(|unmap| What::Zero { unmap }),
        1 => Just(What::Discard),
        1 => Just(What::Flush),
    ];
    let place = (0..LANE).prop_flat_map(|from| (Just(from), 1..=LANE - from));
    (what, place, 0u64..40, prop_oneof![Just(512u32), 700u32..3000])
        .prop_map(|(what, (from, count), skew, piece)| (what, from, count, skew, piece))
}

/// Puts the request of lane `n` into the ring.
fn ask(bench: &Bench, ring: &mut Ring, n: u64, action: Action) {
    let (what, from, count, skew, piece) = action;
    let (at, sector) = (BUFFERS + n * ROOM, n * LANE + from);
    let kind = match what {
        What::Read => 0u32,
        What::Write(_) => 1,
        What::Flush => 4,
        What::Discard => 11,
        What::Zero { .. } => 13,
    };
    let is_range = matches!(what, What::Discard | What::Zero { .. });
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(if is_range { 0 } else { sector }.to_le_bytes());
    bench.put(at, &header);
    bench.put(at + STATUS_AT, &[0xff]);
    let (data, mut len) = (at + 0x40 + skew, (count * SECTOR) as u32);
    match what {
        What::Read => bench.put(data, &vec![0xee; len as usize]),
        What::Write(byte) => {
            let bytes: Vec<u8> = (0..count).flat_map(|n| [byte.wrapping_add(n as u8); 512]).collect();
            bench.put(data, &bytes);
        }
        What::Flush => len = 0,
        What::Zero { .. } | What::Discard => {
            let flags = u32::from(matches!(what, What::Zero { unmap: true }));
            bench.put(data, &sector.to_le_bytes());
            bench.put(data + 8, &[(count as u32).to_le_bytes(), flags.to_le_bytes()].concat());
            len = 16;
        }
    }
    let read = matches!(what, What::Read);
    let pieces = (0..len).step_by(piece as usize);
    let pieces = pieces.map(|cut| (data + u64::from(cut), piece.min(len - cut), read));
    let status = (at + STATUS_AT, 1, true);
    let chain: Vec<_> = std::iter::once((at, 16, false)).chain(pieces).chain([status]).collect();
    ring.chain(n as u16 * 16, &chain);
}

/// Checks the answer to the request of lane `n`, and applies the request to the model. A sector of the model is one
/// byte, repeated 512 times, or unknown.
fn check(bench: &Bench, disk: &mut [Option<u8>], n: u64, (what, from, count, skew, _): Action) {
    let at = BUFFERS + n * ROOM;
    assert_eq!(bench.get(at + STATUS_AT, 1), [0], "{what:?} of lane {n}");
    let sectors = disk[(n * LANE + from) as usize..][..count as usize].iter_mut();
    for (n, held) in (0u8..).zip(sectors) {
        let data = at + 0x40 + skew + u64::from(n) * SECTOR;
        match (what, *held) {
            (What::Read, Some(byte)) => {
                assert!(bench.get(data, 512) == [byte; 512], "sector {from} + {n}: {byte}")
            }
            (What::Write(byte), _) => *held = Some(byte.wrapping_add(n)),
            (What::Zero { .. }, _) => *held = Some(0),
            (What::Discard, _) => *held = None,
            (What::Read, None) | (What::Flush, _) => {}
        }
    }
}

fn qcow2(name: &str) -> Scratch {
    use imago::file::File as Storage;
    use imago::{FormatCreateBuilder, Storage as _, StorageOpenOptions};
    let scratch = Scratch::new(name, 0);
    let storage = Storage::open(StorageOpenOptions::new().write(true).filename(&scratch.0)).unwrap();
    let builder = imago::qcow2::Qcow2::<Storage>::create_builder(storage);
    builder.cluster_size(CLUSTER * 512).size(ALL * SECTOR).create().unwrap();
    scratch
}

fn all_agree(mut bench: Bench, batches: &[Vec<Action>]) {
    let mut disk = vec![Some(0); ALL as usize];
    let mut ring = bench.start(FLUSH, 1, 256).remove(0);
    let everything = vec![(What::Read, 0, LANE, 0, 512); LANES as usize];
    for batch in batches.iter().chain([&everything]) {
        for (n, action) in (0..LANES).zip(batch) {
            ask(&bench, &mut ring, n, *action);
        }
        bench.slot.kick(0);
        let mut seen = 0;
        bench.interrupts.wait_until(|| {
            seen += std::iter::from_fn(|| ring.next_used()).count();
            seen == batch.len()
        });
        for (n, action) in (0..LANES).zip(batch) {
            check(&bench, &mut disk, n, *action);
        }
    }
    bench.reset();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_holds_what_it_should(
        batches in prop::collection::vec(prop::collection::vec(action(), 1..=LANES as usize), 1..12),
    ) {
        let scratch = Scratch::new("model", ALL * SECTOR);
        for bench in benches(&scratch) {
            File::options().write(true).open(&scratch.0).unwrap().set_len(0).unwrap();
            File::options().write(true).open(&scratch.0).unwrap().set_len(ALL * SECTOR).unwrap();
            all_agree(bench, &batches);
        }
        for direct in [false, true] {
            for path in [Scratch::new("model-open", ALL * SECTOR), qcow2("model.qcow2")] {
                let options = Options { direct, ..path.options() };
                // The file system may not support O_DIRECT.
                if let Ok(block) = open(&options) {
                    all_agree(Bench::new(block), &batches);
                }
            }
        }
    }
}
