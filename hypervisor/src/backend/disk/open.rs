//! Opening a disk: its format, its lock, and what does the work on it.

#![forbid(unsafe_code)]

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::file;
use super::image::{Image, Limits};
use super::jobs::Jobs;
use super::open_error::OpenError;
use super::options::{Format, Options, is_called_qcow2};
use super::pool::Pool;
use super::qcow2::Qcow2Image;
use super::raw::RawImage;
use super::uring::Uring;
use crate::machine::device_memory::DeviceMemory;

/// An open disk.
pub struct Disk {
    image: Arc<dyn Image>,
    /// The image again, where io_uring can work on its file.
    raw: Option<Arc<RawImage>>,
    readonly: bool,
    name: String,
}

impl Disk {
    /// Opens a disk and locks it: one writer, or any number of readers.
    ///
    /// # Errors
    /// When it cannot be used; the message says what to do.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let path = options.path.as_path();
        let by_name = if is_called_qcow2(path) { Format::Qcow2 } else { Format::Raw };
        let file = file::open(options)?;
        let (image, raw): (Arc<dyn Image>, _) = match options.format.unwrap_or(by_name) {
            Format::Raw => {
                if options.format.is_none() && file::begins_as_qcow2(&file.0) {
                    return Err(OpenError::LooksLikeQcow2(path.to_owned()));
                }
                let raw = Arc::new(raw(file, options)?);
                let for_uring = raw.takes_sectors().then(|| raw.clone());
                (raw, for_uring)
            }
            Format::Qcow2 if !file::begins_as_qcow2(&file.0) => {
                return Err(OpenError::NoQcow2(path.to_owned()));
            }
            Format::Qcow2 => (Arc::new(Qcow2Image::open(file, options)?), None),
        };
        if image.bytes() == 0 {
            return Err(OpenError::Empty(path.to_owned()));
        }
        Ok(Self::new(image, raw, options))
    }

    /// A disk whose blocks are `image`; `raw`: the same image, if io_uring is to work on it.
    pub(crate) fn new(image: Arc<dyn Image>, raw: Option<Arc<RawImage>>, options: &Options) -> Self {
        let name = options.path.file_name().map(|name| name.to_string_lossy().into_owned());
        Self { image, raw, readonly: options.readonly, name: name.unwrap_or_default() }
    }

    /// Its size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.image.bytes()
    }
    /// Its units of reading, writing and discarding.
    pub(crate) fn limits(&self) -> Limits {
        self.image.limits()
    }
    /// Whether the guest must not write.
    pub(crate) fn is_readonly(&self) -> bool {
        self.readonly
    }
    /// The name of its file, without directories.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What does up to `most` jobs at a time, whose buffers are in `memory`: io_uring where host and format allow it, a
    /// few threads otherwise.
    ///
    /// # Errors
    /// When the host has no thread or descriptor left.
    pub(crate) fn jobs(&self, most: u16, memory: &DeviceMemory) -> io::Result<Box<dyn Jobs>> {
        match self.raw.as_ref().and_then(|raw| Uring::new(raw, most, memory).ok()) {
            Some(uring) => Ok(Box::new(uring)),
            None => Ok(Box::new(Pool::new(&self.image)?)),
        }
    }
}

/// A raw disk, which must have whole blocks.
fn raw(file: file::Locked, options: &Options) -> Result<RawImage, OpenError> {
    let path: &Path = &options.path;
    let opened = |error| OpenError::Open { path: path.to_owned(), error };
    let raw = RawImage::new(file, options.direct).map_err(opened)?;
    let (bytes, block) = (raw.bytes(), raw.limits().block);
    if bytes.is_multiple_of(block) {
        Ok(raw)
    } else {
        Err(OpenError::PartOfABlock { path: path.to_owned(), bytes, block })
    }
}
