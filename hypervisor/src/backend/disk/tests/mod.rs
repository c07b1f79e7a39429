//! Disks of every format: opening, locking, reading and writing, mostly by requests of a virtio driver.

mod direct_io;
mod odd_sizes;
mod open;
mod transfers;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::file::Locked;
use super::image::{Image, Limits, SECTOR};
use super::raw::RawImage;
use super::{Disk, Format, OpenError, Options};
use crate::testing::disk::*;
use crate::testing::virtio::{BUFFERS, Bench};
