//! Disks for tests: scratch files, and requests as a guest's driver makes them.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, Storage as _, StorageOpenOptions};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

use super::skip::skip;
use super::virtio::{BUFFERS, Bench, Ring};
use crate::backend::disk::image::{Image, SECTOR};
use crate::backend::disk::{Disk, Locked, OpenError, Options, RawImage, copy_to};
use crate::virtio::block::Block;

pub const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
pub const HEADER: u64 = BUFFERS;
pub const STATUS: u64 = BUFFERS + 0x100;
pub const DATA: u64 = BUFFERS + 0x1000;
pub const SECTORS: u64 = 2048;

/// A file that is removed when this is dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str, bytes: u64) -> Self {
        let path = std::env::temp_dir().join(format!("paravane-disk-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(bytes).unwrap();
        Self(path)
    }
    pub fn options(&self) -> Options {
        Options { path: self.0.clone(), format: None, readonly: false, direct: false }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The answer to a request: its status, and the used length.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u8,
    pub written: u32,
}

pub fn ok(written: u32) -> Answer {
    Answer { status: 0, written }
}
pub const IO_ERROR: Answer = Answer { status: 1, written: 1 };
pub const UNSUPPORTED: Answer = Answer { status: 2, written: 1 };

/// Makes a request, and waits for its answer.
pub fn request(bench: &Bench, ring: &mut Ring, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> Answer {
    bench.put(HEADER, &kind.to_le_bytes());
    bench.put(HEADER + 8, &sector.to_le_bytes());
    bench.put(STATUS, &[0xff]);
    let all: Vec<_> = [(HEADER, 16, false)].iter().chain(data).chain(&[(STATUS, 1, true)]).copied().collect();
    ring.chain(0, &all);
    let (head, written) = bench.run(0, ring);
    assert_eq!(head, 0);
    Answer { status: bench.get(STATUS, 1)[0], written }
}

/// The same raw disk twice: served by io_uring if the host has it, and served by threads.
pub fn benches(scratch: &Scratch) -> Vec<Bench> {
    let raw = || {
        let file = File::options().read(true).write(true).open(&scratch.0).unwrap();
        Arc::new(RawImage::new(Locked(file), false).unwrap())
    };
    let options = scratch.options();
    let with_uring = raw();
    vec![
        Bench::new(block(with_uring.clone(), Some(with_uring), &options)),
        Bench::new(block(raw(), None, &options)),
    ]
}

/// A device with one queue for an open image. `raw`: the image again, if io_uring is to be used.
pub fn block(image: Arc<dyn Image>, raw: Option<Arc<RawImage>>, options: &Options) -> Block {
    Block::new(Disk::new(image, raw, options), 1, None).unwrap()
}

/// Opens a disk; a device with one queue for it.
pub fn open(options: &Options) -> Result<Block, OpenError> {
    Disk::open(options).map(|disk| Block::new(disk, 1, None).unwrap())
}

/// Fills at most 512 bytes of buffers, which must be live, with a byte.
pub fn fill_all(buffers: &[libc::iovec], byte: u8) {
    // SAFETY: the caller's buffers are live.
    unsafe { copy_to(buffers, &[byte; 512]) };
}

/// A memfd, in which the kernel cannot zero a range (fallocate(2), FALLOC_FL_ZERO_RANGE).
pub fn memory_file(bytes: u64) -> File {
    // SAFETY: the name ends with NUL, and nothing else owns the new descriptor.
    let file = unsafe {
        let fd = libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    };
    file.set_len(bytes).unwrap();
    file
}

/// The number of pages of a file that are not on its disk yet; `None` if this kernel does not say.
pub fn unsynced(file: &File) -> Option<u64> {
    /// The number of cachestat(2), for which libc has no name.
    const CACHESTAT: libc::c_long = 451;
    // Offset and length (0: the whole file); then cache, dirty, writeback, evicted, recently evicted.
    let (range, mut found) = ([0u64; 2], [0u64; 5]);
    // SAFETY: the arrays have the layout of what the call reads and writes (linux/mman.h).
    let result = unsafe {
        libc::syscall(CACHESTAT, std::os::fd::AsRawFd::as_raw_fd(file), range.as_ptr(), found.as_mut_ptr(), 0)
    };
    (result == 0).then(|| found[1] + found[2])
}

/// Makes a read request for sector 0, and does not wait for its answer.
pub fn read_under_way(bench: &Bench, ring: &mut Ring) {
    bench.put(HEADER, &[0; 16]);
    ring.chain(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    bench.put(STATUS, &[0xff]);
    bench.slot.kick(0);
}

/// Sectors of a cluster of an image with the default cluster size.
pub const CLUSTER_SECTORS: u64 = 128;
pub const IMAGE_SECTORS: u64 = CLUSTER_SECTORS * 1024;

/// An empty image of a version of the format.
pub fn qcow2_image(name: &str, version: u32) -> Scratch {
    let scratch = Scratch::new(name, 0);
    let open = StorageOpenOptions::new().write(true).filename(&scratch.0);
    let storage = Storage::open(open).unwrap();
    Qcow2::<Storage>::create_builder(storage).size(IMAGE_SECTORS * SECTOR).create().unwrap();
    if version == 2 {
        // A header of version 2 is a prefix of one of version 3.
        File::options().write(true).open(&scratch.0).unwrap().write_all_at(&2u32.to_be_bytes(), 4).unwrap();
    }
    scratch
}

/// The output of qemu-img; `None` if it is not installed.
pub fn qemu_img(args: &[&str]) -> Option<String> {
    let Ok(output) = Command::new("qemu-img").args(args).output() else {
        skip("qemu-img", "qemu-img is not installed: the image is not checked by it");
        return None;
    };
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    Some(text(&output.stdout))
}

/// Checks an image with qemu-img, if it is installed.
pub fn is_consistent(scratch: &Scratch) {
    // The command fails if the image has errors or leaked clusters.
    qemu_img(&["check", "-q", "-f", "qcow2", scratch.0.to_str().unwrap()]);
}
