//! Jobs of several steps, by io_uring and by threads.

use super::*;

/// The most sectors of one write-zeroes request.
const MOST_SECTORS: u32 = 1 << 16;

/// 32 MiB of zeroes that have to be written, while other requests are served.
#[test]
fn zeroes_where_the_file_system_has_none() {
    const BYTES: u64 = 48 << 20;
    let options = Scratch::new("no-zeroes", 0).options();
    for sync in [FLUSH, 0] {
        for uring in [true, false] {
            let file = memory_file(BYTES);
            for at in (0..BYTES).step_by(1 << 20) {
                file.write_all_at(&[7; 1 << 20], at).unwrap();
            }
            let raw = Arc::new(RawImage::new(Locked(file.try_clone().unwrap()), false).unwrap());
            let mut bench = Bench::new(block(raw.clone(), uring.then(|| raw.clone()), &options));
            let mut rings = bench.start(sync, 1, 16);
            let ring = &mut rings[0];
            bench.put(DATA, &[&5u64.to_le_bytes()[..], &MOST_SECTORS.to_le_bytes(), &[0; 4]].concat());
            bench.put(HEADER, &13u32.to_le_bytes());
            ring.chain(0, &[(HEADER, 16, false), (DATA, 16, false), (STATUS, 1, true)]);
            bench.put(HEADER + 0x200, &[0; 8]);
            bench.put(HEADER + 0x208, &80_000u64.to_le_bytes());
            let small = [(HEADER + 0x200, 16, false), (DATA + 0x1000, 512, true), (STATUS + 0x200, 1, true)];
            ring.chain(3, &small);
            bench.slot.kick(0);
            let mut seen = 0;
            bench.interrupts.wait_until(|| {
                seen += std::iter::from_fn(|| ring.next_used()).count();
                seen == 2
            });
            assert_eq!((bench.get(STATUS, 1), bench.get(STATUS + 0x200, 1)), (vec![0], vec![0]));
            assert!(bench.get(DATA + 0x1000, 512) == [7; 512]);
            let mut found = vec![0; BYTES as usize];
            file.read_exact_at(&mut found, 0).unwrap();
            let (from, to) = (5 * 512, (5 + MOST_SECTORS as usize) * 512);
            assert!(found[..from].iter().chain(&found[to..]).all(|byte| *byte == 7));
            assert!(found[from..to].iter().all(|byte| *byte == 0));
            bench.reset();
        }
    }
}

/// An image whose operations panic.
struct Panicking;

impl Image for Panicking {
    fn bytes(&self) -> u64 {
        SECTORS * SECTOR
    }
    fn limits(&self) -> Limits {
        Limits { block: SECTOR, discard: None }
    }
    fn read(&self, _: &mut [libc::iovec], _: u64) -> io::Result<()> {
        panic!("a test's panic: this is no failure")
    }
    fn write(&self, _: &mut [libc::iovec], _: u64) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_panic_is_an_error_of_its_request() {
    let options = Scratch::new("panic", 0).options();
    let mut bench = Bench::new(block(Arc::new(Panicking), None, &options));
    let mut rings = bench.start(FLUSH, 1, 16);
    let failed = Answer { status: 1, written: 0 };
    // More requests than there are threads.
    for _ in 0..8 {
        assert_eq!(request(&bench, &mut rings[0], 0, 0, &[(DATA, 512, true)]), failed);
    }
    assert_eq!(request(&bench, &mut rings[0], 1, 0, &[(DATA, 512, false)]), ok(1));
    bench.reset();
}

/// A pipe as a disk, served by io_uring: each read returns only the bytes in the pipe, and is continued.
#[test]
fn short_reads_are_continued_even_during_a_reset() {
    use std::io::Write;
    if let Err(why) = io_uring::IoUring::new(2) {
        // The threads use pread(2), which a pipe does not support.
        return crate::testing::skip::skip(
            "io-uring",
            format_args!("not here, or not in this container: {why}"),
        );
    }
    let (from, mut to) = io::pipe().unwrap();
    let raw = Arc::new(RawImage::of_size(std::os::fd::OwnedFd::from(from).into(), SECTORS * SECTOR));
    let options = Scratch::new("pipe", 0).options();
    let mut bench = Bench::new(block(raw.clone(), Some(raw), &options));
    let mut rings = bench.start(FLUSH, 1, 16);
    let ring = &mut rings[0];
    to.write_all(&[1; 100]).unwrap();
    read_under_way(&bench, ring);
    // When the last byte of the first part has arrived, the device waits for the next part.
    while bench.get(DATA + 99, 1) != [1] {
        assert_eq!(ring.used_index(), 0, "the read has ended");
        std::thread::yield_now();
    }
    assert!(!bench.slot.reset());
    to.write_all(&[2; 200]).unwrap();
    to.write_all(&[3; 212]).unwrap();
    bench.reset();
    assert_eq!((ring.next_used(), bench.get(STATUS, 1)), (Some((0, 513)), vec![0]));
    assert!(bench.get(DATA, 512) == [&[1; 100][..], &[2; 200], &[3; 212]].concat());
}
