//! The device that a workload needs: a disk, a network interface or a console.
//!
//! Its back end is made here and not shared with other programs. The disk is an unlinked file, made once and filled
//! with what the guest expects; the peer of the network interface and the loopback of the console are in this
//! process. A measurement thus contains the device and nothing else.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::backend::console::loopback::Loopback;
use crate::backend::disk::{Disk, Format, Options};
use crate::backend::net::mac::Mac;
use crate::backend::net::peer::Peer;
use crate::text::printable::path;
use crate::virtio::Device;
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::net::Net;

/// A device that a workload needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// None.
    Nothing,
    /// A disk of 16 MiB with the pattern of the guest's workloads, read-only.
    Disk,
    /// A network interface with the peer on the other side.
    Network,
    /// A console whose output comes back as its input.
    Console,
}

/// A device that cannot be made on this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// There is no room for a disk.
    #[error(
        "cannot make a disk for it in {}: {why}; set TMPDIR to a directory with 16 MiB",
        path(&std::env::temp_dir())
    )]
    Disk {
        /// What the host says.
        why: String,
    },
    /// There is no descriptor for a console.
    #[error("cannot make a console for it: {why}; raise the limit of open files (ulimit -n)")]
    Console {
        /// What the host says.
        why: String,
    },
}

const DISK_BYTES: u64 = 16 << 20;
/// The seed of the disk's pattern, the same as in the guest's workloads.
const SEED: u64 = 0x5eed;
/// The address of the network interface: a locally administered one.
const ADDRESS: Mac = Mac([0x02, 0, 0, 0, 0x88, 0xb6]);

impl Needs {
    /// The devices for one boot.
    ///
    /// # Errors
    /// When the host has no room for a disk, or no descriptor for a console.
    pub fn provide(self) -> Result<Vec<Box<dyn Device>>, Unavailable> {
        match self {
            Self::Nothing => Ok(Vec::new()),
            Self::Disk => {
                let options =
                    Options { path: disk()?, format: Some(Format::Raw), readonly: true, direct: false };
                let why = |error: &dyn std::fmt::Display| Unavailable::Disk { why: error.to_string() };
                let disk = Disk::open(&options).map_err(|error| why(&error))?;
                let disk = Block::new(disk, 1, None).map_err(|error| why(&error))?;
                Ok(vec![Box::new(disk)])
            }
            Self::Console => {
                let console = Loopback::new().and_then(|end| Console::new(Box::new(end)));
                let console = console.map_err(|e| Unavailable::Console { why: e.to_string() })?;
                Ok(vec![Box::new(console)])
            }
            Self::Network => Ok(vec![Box::new(Net::new(Box::new(Peer::default()), ADDRESS))]),
        }
    }
}

/// The path of the disk's file, which stays open until this process ends, and then no longer exists.
fn disk() -> Result<PathBuf, Unavailable> {
    static DISK: OnceLock<Result<File, Unavailable>> = OnceLock::new();
    let made = DISK.get_or_init(|| make().map_err(|e| Unavailable::Disk { why: e.to_string() }));
    let file = made.as_ref().map_err(Clone::clone)?;
    Ok(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
}

fn make() -> std::io::Result<File> {
    let path = std::env::temp_dir().join(format!("paravane-compare-{}.raw", std::process::id()));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path)?;
    // Remove the name at once, so that the file does not stay if anything fails.
    std::fs::remove_file(&path)?;
    let bytes: Vec<u8> = (0..DISK_BYTES / 8).flat_map(|index| word(SEED, index).to_le_bytes()).collect();
    file.write_all(&bytes)?;
    Ok(file)
}

/// The word at `index`, as computed by the reference guest's `pattern`.
const fn word(seed: u64, index: u64) -> u64 {
    (index ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index >> 7)
}
