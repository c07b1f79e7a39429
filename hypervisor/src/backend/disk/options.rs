//! Which disk the user means.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// How an image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As the guest sees it.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// A disk to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file or block device.
    pub path: PathBuf,
    /// Its format; `None`: qcow2 if the path ends in `.qcow2`, else raw.
    pub format: Option<Format>,
    /// The guest must not write.
    pub readonly: bool,
    /// Bypass the host's page cache (O_DIRECT).
    pub direct: bool,
}

/// Whether a path has the extension of qcow2 images.
pub(super) fn is_called_qcow2(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "qcow2")
}
