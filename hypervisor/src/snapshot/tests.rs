use std::path::PathBuf;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;
use crate::machine::memory::{Backing, MachineMemory, Maddr, Mfn, PAGE_SIZE};

/// A file that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let id = std::process::id();
        Self(
            std::env::temp_dir()
                .join(format!("paravane-snapshot-{name}-{id}-{:?}", std::thread::current().id())),
        )
    }
    fn with(name: &str, bytes: &[u8]) -> Self {
        let scratch = Self::new(name);
        std::fs::write(&scratch.0, bytes).unwrap();
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    name: String,
    words: Vec<u64>,
}

fn state() -> State {
    State { name: "guest".into(), words: vec![1, u64::MAX, 3] }
}

const FRAMES: u64 = 700;
const WITHOUT: std::ops::Range<u64> = 2..5;

fn memory(backing: Backing) -> MachineMemory {
    MachineMemory::new(8, FRAMES - 8, backing).unwrap()
}

/// Writes one with marks in some frames; its bytes.
fn written(backing: Backing) -> Vec<u8> {
    let memory = memory(backing);
    for mfn in [1, 3, 9, 10, 255, 256, 699] {
        memory.store_u64(Maddr(mfn * PAGE_SIZE + 8), 0x1000 + mfn).unwrap();
    }
    let scratch = Scratch::new("written");
    let parts = Parts { memory: &memory, without: WITHOUT, state: &state(), image: b"an image" };
    let summary = write(&scratch.0, &parts).unwrap();
    assert_eq!(summary.memory, 6 * PAGE_SIZE, "not the frame of the engine's, and no zeroes");
    std::fs::read(&scratch.0).unwrap()
}

fn open(bytes: &[u8]) -> Result<(), OpenError> {
    let scratch = Scratch::with("open", bytes);
    let snapshot = Snapshot::open(&scratch.0)?;
    let contents = snapshot.contents::<State>()?;
    snapshot.image()?;
    for backing in [Backing::Memfd, Backing::Anonymous] {
        snapshot.load(&contents, &memory(backing), &WITHOUT)?;
    }
    Ok(())
}

fn damage(bytes: &[u8]) -> Option<Damage> {
    match open(bytes) {
        Err(OpenError::Damaged { damage, .. }) => Some(damage),
        _ => None,
    }
}

#[test]
fn what_is_read_is_what_was_written() {
    for (from, to) in [Backing::Anonymous, Backing::Memfd]
        .into_iter()
        .flat_map(|from| [Backing::Anonymous, Backing::Memfd].map(|to| (from, to)))
    {
        let scratch = Scratch::with("whole", &written(from));
        let snapshot = Snapshot::open(&scratch.0).unwrap();
        let contents = snapshot.contents::<State>().unwrap();
        assert_eq!((contents.state.clone(), snapshot.frames()), (state(), FRAMES));
        assert_eq!(snapshot.image().unwrap(), b"an image");
        let [one, other] = [(); 2].map(|()| memory(to));
        one.store_u64(Mfn(3).maddr(), 77).unwrap();
        for memory in [&one, &other] {
            snapshot.load(&contents, memory, &WITHOUT).unwrap();
        }
        for mfn in 0..FRAMES {
            let mark = [1, 9, 10, 255, 256, 699].contains(&mfn);
            let word = one.load_u64(Maddr(mfn * PAGE_SIZE + 8)).unwrap();
            assert_eq!(word, if mark { 0x1000 + mfn } else { 0 }, "{mfn}");
        }
        assert_eq!(one.load_u64(Mfn(3).maddr()), Ok(77), "the engine's frames are left alone");
        // Two of one file do not touch each other, nor the file.
        one.store_u64(Maddr(9 * PAGE_SIZE + 8), 5).unwrap();
        assert_eq!(other.load_u64(Maddr(9 * PAGE_SIZE + 8)), Ok(0x1009));
        let third = memory(to);
        snapshot.load(&contents, &third, &WITHOUT).unwrap();
        assert_eq!(third.load_u64(Maddr(9 * PAGE_SIZE + 8)), Ok(0x1009));
    }
}

#[test]
fn a_file_stays_what_it_was_if_it_cannot_be_written_anew() {
    let scratch = Scratch::with("kept", b"before");
    let memory = memory(Backing::Anonymous);
    let parts = Parts { memory: &memory, without: 0..0, state: &state(), image: b"" };
    let nowhere = scratch.0.join("below a file");
    assert!(matches!(write(&nowhere, &parts), Err(WriteError::Io { .. })));
    assert_eq!(std::fs::read(&scratch.0).unwrap(), b"before");
    write(&scratch.0, &parts).unwrap();
    Snapshot::open(&scratch.0).unwrap();
    let name = scratch.0.file_name().unwrap().to_string_lossy().into_owned();
    let beside = std::fs::read_dir(scratch.0.parent().unwrap()).unwrap();
    let left = beside
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains(&format!(".{name}.")));
    assert_eq!(left.count(), 0, "the temporary file is gone");
}

#[test]
fn a_damaged_file_is_refused_by_the_name_of_the_damage() {
    let good = written(Backing::Memfd);
    open(&good).unwrap();
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    assert!(matches!(open(b""), Err(OpenError::NotASnapshot { .. })));
    assert!(matches!(open(&changed(0)), Err(OpenError::NotASnapshot { .. })));
    assert!(matches!(open(&changed(8)), Err(OpenError::Version { version: 0x41, .. })));
    assert_eq!(damage(&changed(12)), Some(Damage::Header));
    assert_eq!(damage(&changed(16)), Some(Damage::Header));
    let state_at = (1 + FRAMES as usize) * PAGE_SIZE as usize;
    assert_eq!(damage(&changed(state_at + 3)), Some(Damage::StateChecksum));
    assert_eq!(damage(&changed(good.len() - 1)), Some(Damage::Image));
    let in_memory = damage(&changed((1 + 256) * PAGE_SIZE as usize + 8));
    assert_eq!(in_memory, Some(Damage::Memory { at: 256 * PAGE_SIZE }));
    for cut in [10, 30, PAGE_SIZE as usize, state_at, good.len() - 1] {
        assert_eq!(damage(&good[..cut]), Some(Damage::CutOff), "{cut}");
    }
}

/// A header with a right checksum over these numbers, and these bytes behind it.
fn forged(frames: u64, state_len: u64, image_len: u64, tail: &[u8]) -> Vec<u8> {
    use zerocopy::IntoBytes;
    let body = format::Body {
        frames: frames.into(),
        state_len: state_len.into(),
        image_len: image_len.into(),
        state_checksum: format::checksum(tail).into(),
        ..zerocopy::FromZeros::new_zeroed()
    };
    let mut bytes = format::Header::new(body).as_bytes().to_vec();
    bytes.resize(PAGE_SIZE as usize * (1 + frames.min(4) as usize), 0);
    bytes.extend_from_slice(tail);
    bytes
}

#[test]
fn a_header_that_nobody_writes_is_refused() {
    for (frames, state, image) in
        [(u64::MAX, 0, 0), ((1 << 30) + 1, 0, 0), (1, u64::MAX, 0), (1, 1 << 40, 0), (1, 0, u64::MAX)]
    {
        assert_eq!(damage(&forged(frames, state, image, b"")), Some(Damage::Layout));
    }
    assert_eq!(damage(&forged(1 << 29, 0, 0, b"")), Some(Damage::CutOff));
    let tail = |chunks| format::encode(&format::Tail { chunks, state: state() }).unwrap();
    let chunk = |index, map| format::Chunk { index, map: [map, 0, 0, 0], checksum: 0 };
    for chunks in
        [vec![chunk(1, 1)], vec![chunk(u64::MAX, 1)], vec![chunk(0, 1 << 2)], vec![chunk(0, 0), chunk(0, 0)]]
    {
        let tail = tail(chunks);
        assert_eq!(damage(&forged(2, tail.len() as u64, 0, &tail)), Some(Damage::State));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever follows a header whose checksum is right is refused or read, without much memory.
    #[test]
    fn any_state_is_refused_or_read(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = open(&forged(2, tail.len() as u64, 0, &tail));
    }

    #[test]
    fn any_file_is_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        let begin: &[u8] = if magic { &format::MAGIC } else { b"" };
        prop_assert!(open(&[begin, &bytes].concat()).is_err());
    }

    /// A good file with some bytes changed is refused, or the bytes did not matter.
    #[test]
    fn a_changed_file_is_refused_or_says_the_same(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = written(Backing::Memfd);
        let at = at.index(bytes.len());
        let before = std::mem::replace(&mut bytes[at], to);
        let unused = |at: usize| {
            let page = at / PAGE_SIZE as usize;
            // The rest of the header's page, and frames that are zero or the engine's.
            let is_written = [2, 10, 11, 256, 257, 700].contains(&page);
            (page == 0 && at >= 48) || (1..=FRAMES as usize).contains(&page) && !is_written
        };
        prop_assert_eq!(open(&bytes).is_ok(), before == to || unused(at));
    }
}
