//! Files on the disk: an ext2, ext3 or ext4 file system, read-only.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use core::fmt;

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use crate::device::block::{Disk, SECTOR};
use crate::device::{self, DeviceError};
use crate::kernel::Kernel;
use crate::{print, println};

/// Bytes of one request to the disk.
const REQUEST: usize = 4096;

/// Lists a directory.
pub fn list(kernel: &mut Kernel, path: &str) {
    report(with_files(kernel, |files| {
        for entry in files.read_dir(path)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let (len, mark) = (metadata.len(), if metadata.is_dir() { "/" } else { "" });
            println!("{len:>10} {}{mark}", entry.file_name().display());
        }
        Ok(())
    }));
}

/// Prints a file.
pub fn print(kernel: &mut Kernel, path: &str) {
    report(with_files(kernel, |files| {
        let mut file = files.open(path)?;
        let mut bytes = [0; 256];
        loop {
            let count = file.read_bytes(&mut bytes)?;
            if count == 0 {
                return Ok(());
            }
            for chunk in bytes[..count].utf8_chunks() {
                print!("{}{}", chunk.valid(), if chunk.invalid().is_empty() { "" } else { "?" });
            }
        }
    }));
}

fn report(outcome: Result<(), FilesError>) {
    if let Err(error) = outcome {
        println!("{error}");
    }
}

/// Why files cannot be read.
enum FilesError {
    Device(DeviceError),
    Files(Ext4Error),
}

impl fmt::Display for FilesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(DeviceError::Absent) => {
                f.write_str("no disk; start the guest with one: `paravane run --disk FILE`")
            }
            Self::Device(error) => write!(f, "disk: {error}"),
            Self::Files(error) => write!(f, "{error}"),
        }
    }
}

impl From<Ext4Error> for FilesError {
    fn from(error: Ext4Error) -> Self {
        Self::Files(error)
    }
}

/// Sets the disk up, and calls `f` with the file system on it.
fn with_files(kernel: &mut Kernel, f: impl FnOnce(&Ext4) -> Result<(), Ext4Error>) -> Result<(), FilesError> {
    let transport = device::find(kernel, Disk::KIND).map_err(FilesError::Device)?;
    device::without_interrupts(|| {
        let disk = Disk::new(transport, REQUEST).map_err(FilesError::Device)?;
        disk.check().map_err(FilesError::Device)?;
        let files = Ext4::load(Box::new(Reader(disk)))?;
        Ok(f(&files)?)
    })
}

/// Reads any bytes of a disk, one request at a time.
struct Reader(Disk);

impl Ext4Read for Reader {
    fn read(&mut self, start: u64, into: &mut [u8]) -> Result<(), Box<dyn core::error::Error + Send + Sync>> {
        let mut at = start;
        let mut rest = into;
        while !rest.is_empty() {
            let (sector, skip) = (at / SECTOR as u64, (at % SECTOR as u64) as usize);
            let count = rest.len().min(REQUEST - skip);
            let sectors = (skip + count).div_ceil(SECTOR);
            if sector + sectors as u64 > self.0.capacity() {
                return Err(Box::new(PastTheEnd));
            }
            self.0.read(0, sector, sectors * SECTOR).map_err(DeviceError::from)?;
            self.0.finish(0)?;
            let (part, later) = rest.split_at_mut(count);
            part.copy_from_slice(&self.0.data(0)[skip..skip + count]);
            (at, rest) = (at + count as u64, later);
        }
        Ok(())
    }
}

/// The file system refers to sectors past the end of the disk.
#[derive(Debug)]
struct PastTheEnd;

impl fmt::Display for PastTheEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("past the end of the disk")
    }
}

impl core::error::Error for PastTheEnd {}
