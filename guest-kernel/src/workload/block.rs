//! The disk: set it up once; read 1000 blocks, one at a time and 32 at a time, small ones and large ones.
//!
//! The host has filled the disk with the pattern of [`pattern`]. A rehearsal compares whole blocks; the measured run
//! compares only their first words, so that it measures reading.
#![forbid(unsafe_code)]

use paravane_guest::virtio::kicks;

use crate::device;
use crate::device::block::{DEPTH, Disk, SECTOR};
use crate::kernel::Kernel;
use crate::pattern;

use super::measure::{Failure, Outcome, Workload, measure};

/// The seed of the disk's pattern.
pub const SEED: u64 = 0x5eed;
const READS: usize = 1000;
/// Odd, so that the order of blocks is scattered.
const STRIDE: u64 = 1103;
/// How many completions a deep queue waits for at once.
const BATCH: usize = 24;
/// The same for large blocks, each of which takes the device longer.
const LARGE_BATCH: usize = 12;

pub const SETUP: Workload = Workload {
    name: "block-setup",
    what: "set a disk up, from nothing to its first usable queue",
    unit: "device",
    run: setup,
};

pub const READ_ONE: Workload = Workload {
    name: "block-read-qd1",
    what: "read 1000 blocks of 4 KiB, one at a time",
    unit: "read",
    run: |kernel| read(kernel, pattern::BLOCK, 1, 1),
};

pub const READ_MANY: Workload = Workload {
    name: "block-read-qd32",
    what: "read 1000 blocks of 4 KiB, 32 at a time",
    unit: "read",
    run: |kernel| read(kernel, pattern::BLOCK, DEPTH, BATCH),
};

pub const READ_LARGE: Workload = Workload {
    name: "block-read-64k",
    what: "read 1000 blocks of 64 KiB, 32 at a time",
    unit: "read",
    run: |kernel| read(kernel, 64 << 10, DEPTH, LARGE_BATCH),
};

fn setup(kernel: &mut Kernel) -> Result<Outcome, Failure> {
    let count = device::prepare(kernel)?;
    device::without_interrupts(|| {
        // A rehearsal: it finds out whether there is a device, and touches the queues' memory for the first time.
        let opened = device::open(&kernel.memory, count, Disk::KIND);
        drop(opened.and_then(|transport| Disk::new(transport, SECTOR))?);
        let (disk, measured) = measure(&mut kernel.memory, |memory| {
            device::open(memory, count, Disk::KIND).and_then(|transport| Disk::new(transport, SECTOR))
        });
        let mut disk = disk?;
        disk.check()?;
        Failure::unless(disk.capacity() != 0, "empty-disk")?;
        disk.read(0, 0, SECTOR)?;
        disk.finish(0)?;
        Ok(Outcome::new(1, measured))
    })
}

fn read(kernel: &mut Kernel, bytes: usize, depth: usize, batch: usize) -> Result<Outcome, Failure> {
    let transport = device::find(kernel, Disk::KIND)?;
    device::without_interrupts(|| {
        let disk = Disk::new(transport, bytes)?;
        disk.check()?;
        let blocks = disk.capacity() * SECTOR as u64 / bytes as u64;
        Failure::unless(blocks != 0, "empty-disk")?;
        let mut reader = Reader { disk, bytes, depth, batch, blocks };
        let units = (bytes / pattern::BLOCK) as u64;
        reader.run(|block, data| {
            data.chunks(pattern::BLOCK)
                .zip(block * units..)
                .all(|(unit, number)| pattern::matches(SEED, number, unit))
        })?;
        let before = kicks();
        let (done, measured) = measure(&mut kernel.memory, |_| {
            reader.run(|block, data| pattern::starts(SEED, block * units, data))
        });
        done?;
        let sent = kicks().sent - before.sent;
        let mut outcome = Outcome::new(READS as u64, measured);
        outcome.figures = &["kicks", "kicks-suppressed"];
        outcome.values = [sent, READS as u64 - sent, 0];
        Ok(outcome)
    })
}

/// Reads blocks in the workload's order.
struct Reader {
    disk: Disk,
    bytes: usize,
    depth: usize,
    batch: usize,
    blocks: u64,
}

impl Reader {
    fn block(&self, number: usize) -> u64 {
        number as u64 * STRIDE % self.blocks
    }

    /// Reads all blocks, and passes each with its number to `check`.
    fn run(&mut self, check: impl Fn(u64, &[u8]) -> bool) -> Result<(), Failure> {
        let mut in_slot = [0; DEPTH];
        let (mut started, mut finished) = (0, 0);
        while started < self.depth.min(READS) {
            self.start(started, started, &mut in_slot)?;
            started += 1;
        }
        self.disk.kick();
        while finished < READS {
            let batch = self.batch.min(started - finished);
            self.disk.wait(batch as u16)?;
            let mut any = false;
            while let Some((slot, status)) = self.disk.take()? {
                status?;
                let block = self.block(in_slot[slot]);
                Failure::unless(check(block, self.disk.data(slot)), "wrong-data")?;
                finished += 1;
                if started < READS {
                    self.start(slot, started, &mut in_slot)?;
                    started += 1;
                    any = true;
                }
            }
            if any {
                self.disk.kick();
            }
        }
        Ok(())
    }

    fn start(&mut self, slot: usize, number: usize, in_slot: &mut [usize; DEPTH]) -> Result<(), Failure> {
        in_slot[slot] = number;
        let sector = self.block(number) * (self.bytes / SECTOR) as u64;
        Ok(self.disk.read(slot, sector, self.bytes)?)
    }
}
