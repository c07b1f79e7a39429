//! Tests that need a device. The lines that they print tell the host's test what else to check.
#![forbid(unsafe_code)]

use crate::cmdline::number;
use crate::device::block::{DEPTH, Disk, SECTOR};
use crate::device::{self, DeviceError};
use crate::kernel::Kernel;
use crate::{pattern, println};

/// Draws 1000 bytes twice: neither is all zeroes, and they differ.
pub fn entropy(kernel: &mut Kernel) -> bool {
    let (mut first, mut second) = ([0; 1000], [0; 1000]);
    let drawn =
        device::entropy::fill(kernel, &mut first).and_then(|()| device::entropy::fill(kernel, &mut second));
    if let Err(error) = drawn {
        println!("entropy: {error}");
        return false;
    }
    let zeroes = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == 0).count();
    first != second && zeroes(&first) < 100 && zeroes(&second) < 100
}

/// Breaks the device's rules `times=N` times: the device stops each time, and works again afterwards.
pub fn misuse(kernel: &mut Kernel) -> bool {
    for time in 0..number(kernel.cmdline, "times", 1) {
        let outcome = device::entropy::misuse(kernel);
        if outcome != Err(DeviceError::NeedsReset) {
            println!("misuse: time={time} outcome={outcome:?}");
            return false;
        }
    }
    entropy(kernel)
}

/// Writes the whole disk (`blocks=N` of it) with a pattern, a batch at a time, and flushes each; then reads all back.
///
/// After a line with `flushed=N`, data is on the host's disk even if the host's program is killed: blocks below N hold
/// the pattern of the round's seed (`seed=S`, plus the round's number; `rounds=R`).
pub fn block_verify(kernel: &mut Kernel) -> bool {
    let (seed, rounds) = (number(kernel.cmdline, "seed", 1), number(kernel.cmdline, "rounds", 1));
    let wanted = number(kernel.cmdline, "blocks", u64::MAX);
    let outcome = device::find(kernel, Disk::KIND).and_then(|transport| {
        device::without_interrupts(|| {
            let mut disk = Disk::new(transport, pattern::BLOCK)?;
            disk.check()?;
            let blocks = (disk.capacity() * SECTOR as u64 / pattern::BLOCK as u64).min(wanted);
            println!("block-verify: blocks={blocks} rounds={rounds}");
            for round in 0..rounds {
                write_all(&mut disk, blocks, seed + round, round)?;
            }
            read_all(&mut disk, blocks, seed + rounds - 1)
        })
    });
    match outcome {
        Ok(right) => right,
        Err(error) => {
            println!("block-verify: {error}");
            false
        }
    }
}

const SECTORS: u64 = (pattern::BLOCK / SECTOR) as u64;

fn write_all(disk: &mut Disk, blocks: u64, seed: u64, round: u64) -> Result<(), DeviceError> {
    let mut first = 0;
    while first < blocks {
        let count = (DEPTH as u64).min(blocks - first);
        for (slot, block) in (first..first + count).enumerate() {
            pattern::fill(seed, block, disk.data(slot));
            disk.write(slot, block * SECTORS, pattern::BLOCK)?;
        }
        complete(disk, count as u16, |_, _| true)?;
        disk.flush(0)?;
        disk.finish(0)?;
        first += count;
        println!("block-verify: round={round} flushed={first}");
    }
    Ok(())
}

fn read_all(disk: &mut Disk, blocks: u64, seed: u64) -> Result<bool, DeviceError> {
    let (mut first, mut right) = (0, true);
    while first < blocks {
        let count = (DEPTH as u64).min(blocks - first);
        for (slot, block) in (first..first + count).enumerate() {
            disk.data(slot).fill(0);
            disk.read(slot, block * SECTORS, pattern::BLOCK)?;
        }
        right &=
            complete(disk, count as u16, |slot, bytes| pattern::matches(seed, first + slot as u64, bytes))?;
        first += count;
    }
    Ok(right)
}

/// Waits for `count` requests and passes each slot's data to `check`; returns whether all were right.
fn complete(disk: &mut Disk, count: u16, check: impl Fn(usize, &[u8]) -> bool) -> Result<bool, DeviceError> {
    disk.kick();
    disk.wait(count)?;
    let mut right = true;
    for _ in 0..count {
        let (slot, status) = disk.take()?.ok_or(DeviceError::NotStarted)?;
        status?;
        right &= check(slot, disk.data(slot));
    }
    Ok(right)
}
