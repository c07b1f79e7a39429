//! The shell's commands for the disk.

use super::command::Sectors;
use crate::device::block::{Disk, Features, SECTOR};
use crate::device::{self, DeviceError};
use crate::kernel::Kernel;
use crate::{print, println};

/// Prints the size of the disk and how it can be accessed.
pub fn describe(kernel: &mut Kernel) {
    let found = device::find(kernel, Disk::KIND).and_then(|transport| {
        device::without_interrupts(|| {
            let disk = Disk::new(transport, SECTOR)?;
            disk.check().map(|()| (disk.capacity(), disk.features()))
        })
    });
    match found {
        Err(DeviceError::Absent) => println!("no disk; start the guest with one: `paravane run --disk FILE`"),
        Err(error) => println!("disk: {error}"),
        Ok((sectors, features)) => {
            let access = if features.contains(Features::READ_ONLY) { "read-only" } else { "read and write" };
            println!("disk   {:>8} KiB, {access}", sectors / 2);
        }
    }
}

/// Makes one request and prints how it went. A failure has no other consequence.
pub fn request(kernel: &mut Kernel, what: Sectors) {
    let outcome = device::find(kernel, Disk::KIND).and_then(|transport| {
        device::without_interrupts(|| {
            let mut disk = Disk::new(transport, SECTOR)?;
            disk.check()?;
            match what {
                Sectors::Read(sector) => disk.read(0, sector, SECTOR)?,
                Sectors::Write(sector) => {
                    disk.data(0).chunks_exact_mut(8).for_each(|to| to.copy_from_slice(&sector.to_le_bytes()));
                    disk.write(0, sector, SECTOR)?;
                }
                Sectors::Flush => disk.flush(0)?,
                Sectors::Discard(first, count) => disk.discard(0, first, count)?,
                Sectors::Zero(first, count) => disk.write_zeroes(0, first, count)?,
            }
            disk.finish(0)?;
            if let Sectors::Read(_) = what {
                let data = disk.data(0);
                data[..16].iter().for_each(|byte| print!("{byte:02x}"));
                let same = data.chunks_exact(8).all(|word| *word == data[..8]);
                println!("{}", if same { ", and so on" } else { "..." });
            }
            Ok(())
        })
    });
    match outcome {
        Ok(()) => println!("disk: done"),
        Err(error) => println!("disk: {error}"),
    }
}
