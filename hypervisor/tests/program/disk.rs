//! Data that a guest has flushed survives if the program is killed in the middle of a write load.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use super::{everywhere, paravane, run};

pub const BLOCK: usize = 4096;
pub const BLOCKS: usize = 512;
/// The number of requests that the guest has in flight: blocks after the last flush may have any content.
pub const BATCH: usize = 32;
pub const SEED: u64 = 77;

/// A disk that is deleted on drop.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("paravane-program-{}-{name}", std::process::id()));
        let made = File::create(&path).and_then(|file| file.set_len((BLOCK * BLOCKS) as u64));
        made.unwrap_or_else(|e| panic!("broken test: {}: {e}", path.display()));
        Self(path)
    }
    pub fn path(&self) -> &str {
        self.0.to_str().unwrap_or_else(|| panic!("broken test: the temporary directory has a strange name"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The word at `index` on a disk that the reference guest filled with this seed (guest-kernel, `pattern.rs`).
fn word(seed: u64, index: u64) -> u64 {
    (index ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index >> 7)
}

pub fn holds(disk: &[u8], block: usize, seed: u64) -> bool {
    let words = disk[block * BLOCK..][..BLOCK].chunks_exact(8);
    words.zip((block * BLOCK / 8) as u64..).all(|(bytes, index)| bytes == word(seed, index).to_le_bytes())
}

/// Parses `block-verify: round=R flushed=N`.
fn flushed(line: &str) -> Option<(u64, usize)> {
    let (round, flushed) = line.trim_end().strip_prefix("block-verify: round=")?.split_once(" flushed=")?;
    Some((round.parse().ok()?, flushed.parse().ok()?))
}

/// Kills a guest after `after` flushes, and returns the last flush that it printed.
pub fn killed_after(options: &[&str], disk: &Scratch, after: usize) -> (u64, usize) {
    let cmdline = format!("test=block-verify seed={SEED} rounds=100000 blocks={BLOCKS}");
    let mut args = options.to_vec();
    args.extend(["--disk", disk.path(), "--cmdline", &cmdline]);
    let started = paravane(env!("CARGO_BIN_EXE_paravane"), &args).spawn();
    let mut child = started.unwrap_or_else(|e| panic!("broken test: the program cannot be run: {e}"));
    let out = child.stdout.take().unwrap_or_else(|| panic!("broken test: no standard output"));
    let (mut last, mut count) = (None, 0);
    // Reads to the end, to get everything that it printed before it was killed.
    for line in BufReader::new(out).lines().map_while(Result::ok) {
        let Some(flush) = flushed(&line) else { continue };
        last = Some(flush);
        count += 1;
        if count == after {
            child.kill().unwrap_or_else(|e| panic!("broken test: it cannot be killed: {e}"));
        }
    }
    child.wait().unwrap_or_else(|e| panic!("broken test: {e}"));
    assert!(count >= after, "broken product: it ended after {count} flushes, with {args:?}");
    last.unwrap_or_else(|| panic!("broken product: nothing was flushed, with {args:?}"))
}

#[test]
fn what_was_flushed_survives_sigkill() {
    for options in everywhere() {
        for after in [1, 7, BLOCKS / BATCH, BLOCKS / BATCH + 5] {
            let disk = Scratch::new("kill");
            let (round, count) = killed_after(&options, &disk, after);
            let found = std::fs::read(&disk.0).unwrap_or_else(|e| panic!("broken test: {e}"));
            // After a complete round, the next one begins at the first block.
            let begun = if count == BLOCKS { BATCH } else { 0 };
            for block in begun..count {
                assert!(
                    holds(&found, block, SEED + round),
                    "broken product: block {block} of round {round} is lost, flushed to {count}, with {options:?}"
                );
            }
            // Blocks that this round has not reached are as the previous round left them.
            for block in (count + BATCH..BLOCKS).filter(|_| round > 0) {
                assert!(
                    holds(&found, block, SEED + round - 1),
                    "broken product: block {block} is lost before round {round} came to it, with {options:?}"
                );
            }
        }
    }
}

#[test]
fn a_missing_disk_and_one_in_use_are_reported() {
    run(&["--disk", "/nonexistent/disk"], b"").must_end(1).must_say("cannot open disk /nonexistent/disk");
    let disk = Scratch::new("lock");
    let held = File::open(&disk.0).unwrap_or_else(|e| panic!("broken test: {e}"));
    held.lock_shared().unwrap_or_else(|e| panic!("broken test: {e}"));
    run(&["--disk", disk.path()], b"").must_end(1).must_say("is in use by another process");
    run(&["--disk", &format!("{},readonly", disk.path()), "--cmdline", "test=paging"], b"").must_end(0);
}
