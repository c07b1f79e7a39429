//! What a disk's blocks are on the host: files, block devices and qcow2 images, and the ways to read and write them.
//!
//! A device front opens a [`Disk`] and hands it [`Job`](jobs::Job)s through [`Disk::jobs`].
//!
//! | File | What is in it |
//! | --- | --- |
//! | `options.rs`, `open.rs`, `open_error.rs` | which disk the user means; opening it; why that fails, and what to do |
//! | `file.rs` | a disk's file, opened and locked |
//! | `jobs.rs` | the interface for asynchronous work on a disk |
//! | `uring.rs`, `transfer.rs` | jobs done by io_uring, directly between the file and the guest's memory |
//! | `pool.rs` | jobs done by a few threads: for image formats, and for hosts without io_uring |
//! | `image.rs` | the interface of an image, with operations that wait |
//! | `raw.rs`, `direct.rs` | raw files; the same around the page cache |
//! | `buffers.rs` | lists of guest memory, aligned buffers |
//! | `qcow2` | qcow2 images: by imago, after a check of our own of their tables |
//!
//! Threads: a disk is opened by the main thread. Jobs are begun and ended by the device's thread; a pool has threads
//! of its own. Nothing here is async-signal-safe.

mod buffers;
mod direct;
mod file;
pub(crate) mod image;
pub(crate) mod jobs;
mod open;
mod open_error;
mod options;
mod pool;
mod qcow2;
mod raw;
#[cfg(test)]
mod tests;
mod transfer;
mod uring;

pub(crate) use buffers::Buffers;
pub use open::Disk;
pub use open_error::OpenError;
pub use options::{Format, Options};
pub use qcow2::fault::Fault;
#[cfg(test)]
pub(crate) use {buffers::copy_to, file::Locked, raw::RawImage};
