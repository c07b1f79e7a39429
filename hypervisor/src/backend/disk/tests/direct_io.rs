//! O_DIRECT: buffers that the kernel would refuse, and disks with large blocks.

use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::testing::skip::skip;

/// A disk with O_DIRECT, served by io_uring if the host has it, and by threads.
fn direct_benches(scratch: &Scratch) -> Option<Vec<Bench>> {
    let options = Options { direct: true, ..scratch.options() };
    let raw = || {
        let file = crate::backend::disk::file::open(&options).ok()?;
        file.0.unlock().unwrap();
        RawImage::new(file, true).ok().map(Arc::new)
    };
    let (Some(first), Some(second)) = (raw(), raw()) else {
        skip("direct-io", "the file system of the temporary directory has no O_DIRECT");
        return None;
    };
    let with_uring = first.takes_sectors().then(|| first.clone());
    Some(vec![Bench::new(block(first, with_uring, &options)), Bench::new(block(second, None, &options))])
}

#[test]
fn buffers_anywhere() {
    let scratch = Scratch::new("direct", SECTORS * SECTOR);
    let Some(benches) = direct_benches(&scratch) else { return };
    for (n, mut bench) in (1u8..).zip(benches) {
        let mut rings = bench.start(FLUSH, 1, 32);
        let ring = &mut rings[0];
        let pattern: Vec<u8> = (0..0x3_0000u32).map(|at| (at % 253) as u8 ^ n).collect();
        // Unaligned addresses, lengths that are not multiples of a sector, and more than one bounce buffer holds.
        for (at, cuts) in [
            (DATA, &[512u32][..]),
            (DATA + 4, &[512]),
            (DATA + 1, &[100, 412]),
            (DATA + 511, &[513, 1023]),
            (DATA + 3, &[70_000, 1, 126_607]),
        ] {
            let len: u32 = cuts.iter().sum();
            let pieces = |write: bool| {
                let mut next = at;
                let piece = move |&len: &u32| {
                    let from = next;
                    next += u64::from(len) + 7;
                    (from, len, write)
                };
                cuts.iter().map(piece).collect::<Vec<_>>()
            };
            let mut done = 0;
            for (from, len, _) in pieces(false) {
                bench.put(from, &pattern[done..done + len as usize]);
                done += len as usize;
            }
            assert_eq!(request(&bench, ring, 1, 3, &pieces(false)), ok(1), "{cuts:?}");
            assert_eq!(request(&bench, ring, 4, 0, &[]), ok(1));
            let mut stored = vec![0; len as usize];
            File::open(&scratch.0).unwrap().read_exact_at(&mut stored, 3 * SECTOR).unwrap();
            assert!(stored == pattern[..len as usize], "{cuts:?}");
            pieces(true).iter().for_each(|&(from, len, _)| bench.put(from, &vec![0xee; len as usize]));
            assert_eq!(request(&bench, ring, 0, 3, &pieces(true)), ok(len + 1), "{cuts:?}");
            let found: Vec<_> =
                pieces(true).iter().flat_map(|&(from, len, _)| bench.get(from, len as usize)).collect();
            assert!(found == stored, "{cuts:?}");
        }
        bench.reset();
    }
}

/// More requests at once than there are bounce buffers, and a file that is truncated during some of them.
#[test]
fn many_at_a_time() {
    let scratch = Scratch::new("direct-many", SECTORS * SECTOR);
    let Some(benches) = direct_benches(&scratch) else { return };
    for mut bench in benches {
        File::options().write(true).open(&scratch.0).unwrap().set_len(SECTORS * SECTOR).unwrap();
        let mut rings = bench.start(FLUSH, 1, 128);
        let ring = &mut rings[0];
        for (kind, fails) in [(1u32, 0), (0, 0), (0, 16)] {
            if fails > 0 {
                let left = (32 - fails) * 8 * SECTOR;
                File::options().write(true).open(&scratch.0).unwrap().set_len(left).unwrap();
            }
            for n in 0..32u16 {
                let at = BUFFERS + 0x8000 + u64::from(n) * 0x2000;
                bench.put(at, &kind.to_le_bytes());
                bench.put(at + 8, &(u64::from(n) * 8).to_le_bytes());
                bench.put(at + 20, &vec![if kind == 1 { n as u8 + 1 } else { 0xee }; 4096]);
                bench.put(at + 0x1800, &[0xff]);
                let read = kind == 0;
                ring.chain(n * 3, &[(at, 16, false), (at + 20, 4096, read), (at + 0x1800, 1, true)]);
            }
            bench.slot.kick(0);
            let mut seen = 0;
            bench.interrupts.wait_until(|| {
                seen += std::iter::from_fn(|| ring.next_used()).count();
                seen == 32
            });
            for n in 0..32u64 {
                let at = BUFFERS + 0x8000 + n * 0x2000;
                let failed = n >= 32 - fails;
                assert_eq!(bench.get(at + 0x1800, 1), [u8::from(failed)], "request {n}");
                assert!(failed || bench.get(at + 20, 4096) == vec![n as u8 + 1; 4096], "request {n}");
            }
        }
        bench.reset();
    }
}

/// A loop device with sectors of 4096 bytes, which is removed when this is dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(scratch: &Scratch) -> Option<Self> {
        let args = ["--show", "-f", "-b", "4096"];
        let output = Command::new("losetup").args(args).arg(&scratch.0).output().ok()?;
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then(|| Self(path.into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn requests_for_less_than_a_block() {
    let scratch = Scratch::new("large-blocks", SECTORS * SECTOR);
    let Some(device) = Loop::over(&scratch) else {
        return skip("loop-devices", "a loop device of 4096-byte sectors cannot be made here (needs root)");
    };
    let options = Options { path: device.0.clone(), direct: true, ..scratch.options() };
    let mut bench = Bench::new(open(&options).unwrap());
    let config = bench.slot.link().config().0;
    assert_eq!(config.bytes()[20..24], 4096u32.to_le_bytes(), "blk_size");
    assert_eq!(config.bytes()[24], 0, "a block is a physical one");
    let mut rings = bench.start(FLUSH, 1, 128);
    let ring = &mut rings[0];
    bench.put(DATA, &[1; 8192]);
    assert_eq!(request(&bench, ring, 1, 0, &[(DATA, 8192, false)]), ok(1));
    // Each sector of two blocks in a request of its own, all at once.
    for n in 0..16u16 {
        let at = BUFFERS + 0x8000 + u64::from(n) * 0x1000;
        bench.put(at, &1u32.to_le_bytes());
        bench.put(at + 8, &u64::from(n).to_le_bytes());
        bench.put(at + 16, &[0x40 + n as u8; 512]);
        ring.chain(n * 3, &[(at, 16, false), (at + 16, 512, false), (at + 0x800, 1, true)]);
    }
    bench.slot.kick(0);
    let mut seen = 0;
    bench.interrupts.wait_until(|| {
        seen += std::iter::from_fn(|| ring.next_used()).count();
        seen == 16
    });
    assert_eq!(request(&bench, ring, 4, 0, &[]), ok(1));
    assert_eq!(request(&bench, ring, 0, 0, &[(DATA, 8192, true)]), ok(8193));
    let expected: Vec<u8> = (0..16u8).flat_map(|n| [0x40 + n; 512]).collect();
    assert!(bench.get(DATA, 8192) == expected);
    // Write-zeroes for less than a block, which the block device cannot do.
    bench.put(DATA, &[3u64.to_le_bytes(), 2u64.to_le_bytes()].concat());
    assert_eq!(request(&bench, ring, 13, 0, &[(DATA, 16, false)]), ok(1));
    assert_eq!(request(&bench, ring, 0, 2, &[(DATA, 2048, true)]), ok(2049));
    let expected: Vec<u8> = [0x42, 0, 0, 0x45].into_iter().flat_map(|byte| [byte; 512]).collect();
    assert!(bench.get(DATA, 2048) == expected);
    bench.reset();
}
