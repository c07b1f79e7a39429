//! Data that a guest flushed is on the host's disk, not only in its page cache; a qcow2 image is consistent whenever
//! the program is killed.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::process::Command;

use super::disk::{BATCH, BLOCK, BLOCKS, SEED, Scratch, holds, killed_after};
use super::disk_errors::has_qemu_img;
use super::{everywhere, run, skip};

/// The number of pages in a range of blocks that are not on the host's disk yet, by cachestat(2); `None` if the kernel
/// lacks this call.
fn unsynced_in(disk: &Scratch, blocks: Range<usize>) -> Option<u64> {
    const CACHESTAT: libc::c_long = 451;
    let file = File::open(&disk.0).unwrap();
    // Offset and length; then the counts of cached, dirty, writeback, evicted and recently evicted pages.
    let range = [blocks.start, blocks.len()].map(|n| (n * BLOCK) as u64);
    let mut found = [0u64; 5];
    // SAFETY: an open descriptor, and two arrays with the layouts that the call reads and writes (linux/mman.h).
    let result = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), 0) };
    (result == 0).then(|| found[1] + found[2])
}

fn unsynced(disk: &Scratch) -> Option<u64> {
    // A length of 0 means the whole file.
    unsynced_in(disk, 0..0)
}

/// Whether written and synced data can be told apart here, which is impossible on a tmpfs.
fn can_tell() -> bool {
    use std::os::unix::fs::FileExt;
    let disk = Scratch::new("control");
    let file = File::options().write(true).open(&disk.0).unwrap();
    file.write_all_at(&[1; BLOCK], 0).unwrap();
    let written = unsynced(&disk);
    file.sync_all().unwrap();
    let can = written.is_some_and(|n| n > 0) && unsynced(&disk) == Some(0);
    if !can {
        skip("cachestat", "this kernel (Linux 6.5 can) or file system does not say which pages are dirty");
    }
    can
}

/// Makes a qcow2 image with small clusters, so that a write load allocates many.
fn make_qcow2(disk: &Scratch) {
    let size = (BLOCK * BLOCKS).to_string();
    let args = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", disk.path(), &size];
    let made = Command::new("qemu-img").args(args).status();
    assert!(made.is_ok_and(|made| made.success()), "broken test: qemu-img makes no image");
}

/// The guest writes its whole disk, flushes, and ends: no page remains dirty.
#[test]
fn what_was_flushed_is_on_the_disk() {
    if !can_tell() {
        return;
    }
    let cmdline = format!("test=block-verify seed={SEED} rounds=1 blocks={BLOCKS}");
    for options in everywhere() {
        for format in ["raw", "qcow2"] {
            let disk = Scratch::new("flushed");
            if format == "qcow2" {
                if !has_qemu_img() {
                    continue;
                }
                make_qcow2(&disk);
                File::open(&disk.0).unwrap().sync_all().unwrap();
            }
            let path = format!("{},format={format}", disk.path());
            let ran = run(&[&options[..], &["--disk", &path, "--cmdline", &cmdline]].concat(), b"");
            let left = unsynced(&disk);
            ran.must_end(0).must_print("test: name=block-verify ok=true");
            ran.must(left == Some(0), format_args!("left {left:?} pages of a {format} disk unwritten"));
        }
    }
}

/// Killed in the middle of a write load, which does not change the page cache: no flushed page is dirty.
#[test]
fn what_was_flushed_before_sigkill_is_on_the_disk() {
    if !can_tell() {
        return;
    }
    for options in everywhere() {
        for after in [1, 9, BLOCKS / BATCH + 3] {
            let disk = Scratch::new("kill-flushed");
            let (_, count) = killed_after(&options, &disk, after);
            let begun = if count == BLOCKS { BATCH } else { 0 };
            let left = unsynced_in(&disk, begun..count);
            assert_eq!(
                left,
                Some(0),
                "broken product: pages below block {count} unwritten, with {options:?}"
            );
        }
    }
}

/// Killed in the middle of a write load, an image may have leaked clusters, but no data is lost.
#[test]
fn a_qcow2_image_survives_sigkill() {
    if !has_qemu_img() {
        return;
    }
    for options in everywhere() {
        for after in [1, 7, BLOCKS / BATCH + 3] {
            let disk = Scratch::new("kill.qcow2");
            make_qcow2(&disk);
            let (round, count) = killed_after(&options, &disk, after);
            let check =
                Command::new("qemu-img").args(["check", "-f", "qcow2", disk.path()]).output().unwrap();
            // 0: no errors; 3: only leaked clusters (qemu-img(1)).
            let right = matches!(check.status.code(), Some(0 | 3));
            let said = String::from_utf8_lossy(&check.stdout);
            assert!(right, "broken product: after {after} flushes, with {options:?}: {said}");
            let raw = Scratch::new("kill.raw");
            let args = ["convert", "-f", "qcow2", "-O", "raw", disk.path(), raw.path()];
            assert!(Command::new("qemu-img").args(args).status().is_ok_and(|s| s.success()));
            let found = std::fs::read(&raw.0).unwrap();
            let begun = if count == BLOCKS { BATCH } else { 0 };
            for block in begun..count {
                assert!(
                    holds(&found, block, SEED + round),
                    "broken product: block {block} of round {round} is lost, flushed to {count}, with {options:?}"
                );
            }
        }
    }
}
