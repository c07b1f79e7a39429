//! Requests that take their time: what a reset waits for, and what does not wait for them.

use std::os::fd::FromRawFd;
use std::sync::Condvar;

use super::*;

/// An anonymous file, which the kernel cannot make zeroes in (fallocate(2), FALLOC_FL_ZERO_RANGE).
fn memory_file(bytes: u64) -> File {
    // SAFETY: a name that lives, and the descriptor is nobody else's.
    let file = unsafe {
        let fd = libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    };
    file.set_len(bytes).unwrap();
    file
}

/// 32 MiB of zeroes that have to be written, and others' requests beside them.
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
            let mut bench = Bench::new(Block::new(raw.clone(), uring.then(|| raw.clone()), &options));
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

/// Waits to be let on. Whether somebody has come, and whether it is open.
#[derive(Default)]
struct Gate(Mutex<(bool, bool)>, Condvar);

impl Gate {
    fn pass(&self) -> io::Result<()> {
        self.0.lock().unwrap().0 = true;
        self.1.notify_all();
        drop(self.1.wait_while(self.0.lock().unwrap(), |(_, open)| !*open).unwrap());
        Ok(())
    }
    fn wait_for_somebody(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |(came, _)| !*came).unwrap());
    }
    fn open(&self) {
        self.0.lock().unwrap().1 = true;
        self.1.notify_all();
    }
}

impl Image for Arc<Gate> {
    fn bytes(&self) -> u64 {
        SECTORS * SECTOR
    }
    fn limits(&self) -> Limits {
        Limits { block: SECTOR, discard: None }
    }
    fn read(&self, buffers: &mut [libc::iovec], _: u64) -> io::Result<()> {
        self.pass()?;
        // SAFETY: the bench's memory, which a device's request keeps.
        unsafe { crate::backend::disk::buffers::copy_to(buffers, &[9; 512]) };
        Ok(())
    }
    fn write(&self, _: &mut [libc::iovec], _: u64) -> io::Result<()> {
        self.pass()
    }
    fn flush(&self) -> io::Result<()> {
        self.pass()
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.pass()
    }
    fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        self.pass()
    }
}

fn read_under_way(bench: &Bench, ring: &mut Ring) {
    bench.put(HEADER, &[0; 16]);
    ring.chain(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    bench.put(STATUS, &[0xff]);
    bench.slot.kick(0);
}

#[test]
fn a_reset_waits_for_what_is_in_work() {
    let gate = Arc::new(Gate::default());
    let options = Scratch::new("gate", 0).options();
    let mut bench = Bench::new(Block::new(Arc::new(gate.clone()), None, &options));
    let mut rings = bench.start(FLUSH, 1, 16);
    let ring = &mut rings[0];
    read_under_way(&bench, ring);
    gate.wait_for_somebody();
    assert!(!bench.slot.reset(), "what is in work is not called back");
    gate.open();
    bench.reset();
    assert_eq!((ring.next_used(), bench.get(STATUS, 1)), (Some((0, 513)), vec![0]));
    assert!(bench.get(DATA, 512) == [9; 512]);
}

/// An image whose library fails in its own way.
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
    let mut bench = Bench::new(Block::new(Arc::new(Panicking), None, &options));
    let mut rings = bench.start(FLUSH, 1, 16);
    let failed = Answer { status: 1, written: 0 };
    // More of them than there are threads.
    for _ in 0..8 {
        assert_eq!(request(&bench, &mut rings[0], 0, 0, &[(DATA, 512, true)]), failed);
    }
    assert_eq!(request(&bench, &mut rings[0], 1, 0, &[(DATA, 512, false)]), ok(1));
    bench.reset();
}

/// The same by io_uring, with a pipe for a disk, which gives what there is: reads end short and are gone on with.
#[test]
fn short_reads_are_gone_on_with_even_during_a_reset() {
    use std::io::Write;
    if let Err(why) = io_uring::IoUring::new(2) {
        // Threads do not read from what has no places.
        return crate::testing::skip::skip(
            "io-uring",
            format_args!("not here, or not in this container: {why}"),
        );
    }
    let (from, mut to) = io::pipe().unwrap();
    let raw = Arc::new(RawImage::of_size(std::os::fd::OwnedFd::from(from).into(), SECTORS * SECTOR));
    let options = Scratch::new("pipe", 0).options();
    let mut bench = Bench::new(Block::new(raw.clone(), Some(raw), &options));
    let mut rings = bench.start(FLUSH, 1, 16);
    let ring = &mut rings[0];
    to.write_all(&[1; 100]).unwrap();
    read_under_way(&bench, ring);
    // The last byte of the first part: then the device waits for the next.
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
