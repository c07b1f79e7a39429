//! Traces that are written and read, whole, cut off, and damaged.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::format::{CauseName, Damage, Exits, Frame, Header, ImageFacts, StartError, Totals};
use super::format::{LARGEST_FRAME, MAGIC, MOST_VCPUS, VERSION, write_frame, write_start};
use super::places::Places;
use super::reader::{Entry, Reader};
use super::record::{Destination, Outcome, Recorder};
use super::ring::BATCH;
use super::*;
use crate::ledger::{Cause, MARK_BEGIN, MARK_END, PortDevice};
use crate::monitor::Handled;
use crate::monitor::observe::{Observer, Seen};
use crate::testing::elf::{Elf, Symbol};

mod views;

/// A file that somebody else can look at, and that does what a test wants.
#[derive(Clone, Default)]
struct File {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// From how many bytes on it is full.
    room: Option<usize>,
}

impl File {
    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self.bytes.lock().unwrap();
        let room = self.room.map_or(bytes.len(), |room| (room - file.len()).min(bytes.len()));
        if room == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        file.extend_from_slice(&bytes[..room]);
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that says when it is written to, and then waits to be told that it may.
struct SlowDisk {
    file: File,
    begun: Sender<()>,
    may: Receiver<()>,
}

impl Write for SlowDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.begun.send(());
        // Once nobody is there to say so, it may.
        let _ = self.may.recv();
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn header() -> Header {
    Header {
        program: "1.2.3".to_owned(),
        image: ImageFacts::of("kernel.elf", b"an image"),
        technique: "trap".to_owned(),
        engine: "process".to_owned(),
        transport: "stub".to_owned(),
        began: 1_700_000_000_000_000_000,
        causes: CauseName::all(),
    }
}

fn begin(file: impl Write + Send + 'static) -> Recorder {
    let to = Destination { file: Box::new(file), image: Some(b"/images/kernel.elf".to_vec()) };
    Recorder::begin(to, header(), 0).unwrap()
}

fn seen(exit: &Exit) -> Seen {
    let cause = Cause::all().nth(exit.cause.into()).unwrap();
    let handled = Handled { cause, mark: exit.mark };
    Seen { handled, left: exit.left, entered: exit.entered(), worked: exit.worked, place: exit.place }
}

fn record(exits: &[Exit], file: impl Write + Send + 'static) -> Outcome {
    let mut recorder = begin(file);
    exits.iter().for_each(|exit| recorder.see(&seen(exit)));
    recorder.finish()
}

fn written(exits: &[Exit]) -> Vec<u8> {
    let file = File::default();
    let outcome = record(exits, file.clone());
    assert!(outcome.error.is_none());
    assert_eq!(outcome.totals, Totals { exits: exits.len() as u64, lost: 0 });
    file.bytes()
}

/// All that can be read, and what is wrong.
fn read(bytes: &[u8]) -> Result<(Vec<Entry>, Option<String>), StartError> {
    let mut reader = Reader::open(bytes)?;
    let entries: Vec<Entry> = reader.by_ref().collect();
    assert!(reader.next().is_none(), "it ends once");
    Ok((entries, reader.damage().map(ToString::to_string)))
}

fn exit(left: u64, cause: Cause, worked: u64, place: u64) -> Exit {
    Exit { vcpu: 0, left, worked, waited: 0, place, cause: cause.index() as u16, mark: None }
}

fn entries(exits: &[Exit]) -> Vec<Entry> {
    exits.iter().copied().map(Entry::Exit).collect()
}

/// Exits in order, with everything at random that may be.
fn some_exits(most: usize) -> impl Strategy<Value = Vec<Exit>> {
    let mark = prop_oneof![Just(None), any::<u8>().prop_map(Some)];
    let one = (0u64..1 << 40, 0..Cause::COUNT as u16, 0u64..1 << 40, 0u64..1 << 40, any::<u64>(), mark);
    prop::collection::vec(one, 0..most).prop_map(|list| {
        let mut left = 0;
        let exit = |(since, cause, worked, waited, place, mark)| {
            left += since;
            Exit { vcpu: 0, left, worked, waited, place, cause, mark }
        };
        list.into_iter().map(exit).collect()
    })
}

#[test]
fn many_batches_come_out_in_order() {
    let exits: Vec<Exit> =
        (0..3 * BATCH as u64 + 7).map(|n| exit(n * 1000, Cause::Hypercall((n % 64) as u8), n, !n)).collect();
    let (read, damage) = read(&written(&exits)).unwrap();
    assert!(read == entries(&exits) && damage.is_none());
}

#[test]
fn the_header_says_what_was_run() {
    let bytes = written(&[]);
    let reader = Reader::open(&bytes[..]).unwrap();
    let image = ImageFacts { path: Some(b"/images/kernel.elf".to_vec()), ..header().image };
    assert_eq!(*reader.header(), Header { image, ..header() });
    assert!(reader.header().image.is(b"an image") && !reader.header().image.is(b"an imagf"));
}

#[test]
fn what_a_slow_disk_loses_is_counted_where_it_is_missing() {
    let (begun, has_begun) = channel();
    let (go, may) = channel();
    let file = File::default();
    let mut recorder = begin(SlowDisk { file: file.clone(), begun, may });
    // The writer stands in its first write; whatever it is given waits.
    has_begun.recv().unwrap();
    let all = 20 * BATCH as u64;
    (0..all).for_each(|n| recorder.see(&seen(&exit(n, Cause::Kick, 1, 0))));
    drop(go);
    let totals = recorder.finish().totals;
    assert!(totals.lost >= 2 * BATCH as u64, "16 batches and one were kept: {totals:?}");
    assert_eq!(totals.exits + totals.lost, all);
    let (read, damage) = read(&file.bytes()).unwrap();
    assert_eq!(damage, None);
    let kept = read.iter().filter(|entry| matches!(entry, Entry::Exit(_))).count();
    let Some(Entry::Lost { vcpu: 0, after, count }) = read.last().copied() else {
        panic!("the end is what is missing: {:?}", read.last());
    };
    assert_eq!((kept as u64, count, after), (totals.exits, totals.lost, totals.exits - 1));
}

#[test]
fn a_full_disk_ends_the_trace_and_not_the_run() {
    let exits: Vec<Exit> = (0..2 * BATCH as u64).map(|n| exit(n, Cause::Kick, 1, 0)).collect();
    let room = written(&[]).len() + 40_000;
    let file = File { room: Some(room), ..File::default() };
    let Outcome { totals, error } = record(&exits, file.clone());
    assert_eq!(error.and_then(|error| error.raw_os_error()), Some(libc::ENOSPC));
    assert_eq!((totals.exits, totals.lost), (BATCH as u64, BATCH as u64));
    let (read, damage) = read(&file.bytes()).unwrap();
    assert_eq!(read, entries(&exits[..BATCH]));
    assert!(damage.unwrap().contains("cut off"));
}

#[test]
fn what_is_no_trace_is_named() {
    let said = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    assert!(said(b"").contains("paravane run --trace"));
    assert!(said(b"\x7fELF and more").contains("no") && said(b"PVtrac").contains("not a trace"));
    let newer = [&MAGIC[..], &(VERSION + 1).to_le_bytes(), &[0; 99]].concat();
    assert!(said(&newer).contains(&format!("version {}", VERSION + 1)));
    let bytes = written(&[]);
    assert!(said(&bytes[..bytes.len() - 40]).contains("at its beginning"));
    assert!(said(&bytes[..MAGIC.len() + 2]).contains("at its beginning"));
}

/// A file with these frames.
fn frames(frames: &[Frame]) -> Vec<u8> {
    let (mut file, mut buffer) = (Vec::new(), Vec::new());
    write_start(&mut file).unwrap();
    frames.iter().for_each(|frame| write_frame(&mut file, frame, &mut buffer).unwrap());
    file
}

#[test]
fn frames_that_make_no_sense_are_refused() {
    let coded = |since, cause, worked, waited| {
        let exits = vec![format::Coded { since, cause, worked, waited, place: 0, mark: None }];
        Frame::Exits(Exits { vcpu: 0, exits, lost: 0 })
    };
    let end = |exits, lost| Frame::End(Totals { exits, lost });
    let empty = |vcpu, lost| Frame::Exits(Exits { vcpu, exits: Vec::new(), lost });
    let after_header = |list: Vec<Frame>| {
        let list: Vec<Frame> = std::iter::once(Frame::Header(header())).chain(list).collect();
        read(&frames(&list)).unwrap()
    };
    for list in [
        vec![Frame::Header(header())],
        vec![end(1, 0)],
        vec![empty(0, 3), end(0, 2)],
        vec![empty(0, u64::MAX), empty(0, u64::MAX)],
        vec![empty(MOST_VCPUS, 0)],
        vec![coded(1, Cause::COUNT as u16, 1, 1)],
        vec![coded(u64::MAX, 0, 1, 0)],
        vec![coded(1, 0, u64::MAX - 1, 1)],
    ] {
        let said = format!("{list:?}");
        assert_eq!(after_header(list).1.as_deref(), Some("a frame makes no sense"), "{said}");
    }
    assert_eq!(after_header(vec![coded(5, 0, 1, 1), end(1, 0)]).1, None);
    assert!(after_header(vec![end(0, 0), end(0, 0)]).1.unwrap().contains("follows its end"));
    assert!(after_header(vec![coded(5, 0, 1, 1)]).1.unwrap().contains("cut off"));
    let no_header = read(&frames(&[end(0, 0)]));
    assert!(matches!(no_header, Err(StartError::Damaged(Damage::Nonsense))));
}

#[test]
fn a_length_is_checked_before_there_is_memory_for_it() {
    let mut bytes = frames(&[Frame::Header(header())]);
    for length in [0, LARGEST_FRAME as u32 + 1, u32::MAX] {
        bytes.extend(length.to_le_bytes());
        bytes.extend([0; 64]);
        assert!(read(&bytes).unwrap().1.unwrap().contains("a length makes no sense"));
        bytes.truncate(bytes.len() - 68);
    }
}

#[test]
fn the_largest_batch_fits_a_frame() {
    let worst = Exit {
        vcpu: 0,
        left: u64::MAX / 2,
        worked: u64::MAX / 4,
        waited: u64::MAX / 4,
        place: u64::MAX,
        cause: Cause::COUNT as u16 - 1,
        mark: Some(255),
    };
    let (read, damage) = read(&written(&vec![worst; BATCH])).unwrap();
    assert!(read == entries(&vec![worst; BATCH]) && damage.is_none());
}

proptest! {
    #[test]
    fn what_was_written_is_read(exits in some_exits(300)) {
        prop_assert_eq!(read(&written(&exits)).unwrap(), (entries(&exits), None));
    }

    #[test]
    fn a_cut_file_is_read_up_to_the_cut(exits in some_exits(60), at in any::<prop::sample::Index>()) {
        let bytes = written(&exits);
        let cut = &bytes[..at.index(bytes.len())];
        if let Ok((read, damage)) = read(cut) {
            prop_assert!(entries(&exits).starts_with(&read));
            prop_assert!(damage.unwrap().contains("cut off"));
        }
    }

    #[test]
    fn a_changed_byte_is_noticed(
        exits in some_exits(60),
        at in any::<prop::sample::Index>(),
        change in 1u8..,
    ) {
        let mut bytes = written(&exits);
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        if let Ok((read, damage)) = read(&bytes) {
            prop_assert!(entries(&exits).starts_with(&read));
            prop_assert!(damage.is_some());
        }
    }

    #[test]
    fn bytes_at_random_with_right_checksums_are_survived(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..6),
        kind in 0u8..4,
        junk in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = frames(&[Frame::Header(header())]);
        for mut payload in payloads {
            payload[0] = kind;
            let mut crc = flate2::Crc::new();
            crc.update(&payload);
            bytes.extend((payload.len() as u32).to_le_bytes());
            bytes.extend(crc.sum().to_le_bytes());
            bytes.extend(payload);
        }
        bytes.extend(junk);
        let (entries, _) = read(&bytes).unwrap();
        let places = Places::default();
        let mut filter = filter::Filter::default();
        let header = header();
        let mut summary = summary::Summary::new(&header, &places);
        let mut line = timeline::Timeline::begin(io::sink(), &header, &places, false).unwrap();
        for entry in &entries {
            line.add(entry).unwrap();
            if let Entry::Exit(exit) = entry {
                prop_assert!(filter.wants(exit, &places));
                summary.add(exit);
            }
        }
        prop_assert_eq!(summary.rows(summary::By::Cause).iter().map(|row| row.tally.count).sum::<u64>(),
            summary.all().count);
    }

    #[test]
    fn a_file_at_random_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
        let _ = read(&[&MAGIC[..], &VERSION.to_le_bytes(), &bytes].concat());
    }
}
