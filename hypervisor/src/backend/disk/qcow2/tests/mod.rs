//! qcow2 images: valid ones, damaged ones, and the operations on them.

mod clusters;
mod damaged;
mod good_images;
mod mutated;
mod referenced_files;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Qcow2Image, check};
use crate::backend::disk::file;
use crate::backend::disk::image::{Image, SECTOR};
use crate::backend::disk::{Disk, Format, Options};
use crate::testing::disk::*;
use crate::testing::virtio::{Bench, Ring};
