//! Pipelines: bytes pass through three processes and arrive complete, in order and correctly changed.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::fd::OwnedFd;

use crate::random::{Random, SUM, checksum};
use crate::{Outcome, spoils, sys};

/// Makes, changes and sums up bytes, in three processes.
pub fn run(random: &mut Random) -> Outcome {
    let (seed, key) = (random.next(), (random.next() & 0xff) as u8);
    let len = random.below(600_000) as usize + 1;
    let step = random.below(9000) as usize + 1;
    let (made, maker) = ends()?;
    let (changed, changer) = ends()?;
    let first = sys::fork(|| status(make(maker, seed, len, step)))?;
    let second = sys::fork(|| status(change(made, changer, key, step)))?;
    let expected = Random::new(seed).bytes(len);
    let expected = expected.iter().fold(SUM, |sum, byte| checksum(sum, &[byte ^ key]));
    let (mut sum, mut count) = (SUM, 0);
    let mut changed = changed;
    let mut buffer = vec![0; step];
    loop {
        match changed.read(&mut buffer).map_err(|e| format!("read: {e}"))? {
            0 => break,
            n => {
                sum = checksum(sum, &buffer[..n]);
                count += n;
            }
        }
    }
    for child in [first, second] {
        if sys::wait(child)? != 0 {
            return Err("a stage failed".into());
        }
    }
    if spoils("pipeline") {
        sum ^= 1;
    }
    if (sum, count) != (expected, len) {
        return Err(format!("{count} bytes of sum {sum:016x} instead of {len} of {expected:016x}"));
    }
    Ok(())
}

/// A pipe between two children. The parent drops each end once the child that needs it exists.
fn ends() -> Result<(File, File), String> {
    let (reader, writer) = pipe().map_err(|e| format!("pipe: {e}"))?;
    Ok((File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer))))
}

fn status(result: std::io::Result<()>) -> i32 {
    i32::from(result.is_err())
}

fn make(mut to: File, seed: u64, len: usize, step: usize) -> std::io::Result<()> {
    Random::new(seed).bytes(len).chunks(step).try_for_each(|part| to.write_all(part))
}

fn change(mut from: File, mut to: File, key: u8, step: usize) -> std::io::Result<()> {
    let mut buffer = vec![0; step];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        for byte in &mut buffer[..n] {
            *byte ^= key;
        }
        to.write_all(&buffer[..n])?;
    }
}
