//! Reasons why a disk cannot be opened, with advice.

#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use super::options::is_called_qcow2;
use super::qcow2::fault::Fault;
use crate::text::printable::path as name;

/// A disk cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened.
    #[error("cannot open disk {}: {error}{}", name(path), hint(path, error))]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process writes to it, or reads it while it is to be written.
    #[error(
        "disk {} is in use by another process, or behind another disk; end that one, make a copy, or open it \
         \",readonly\" in both",
        name(.0)
    )]
    Locked(PathBuf),
    /// It is a directory, a pipe, a terminal...
    #[error("disk {} is {}", name(.0), instead(.0))]
    NoDisk(PathBuf),
    /// It has no bytes.
    #[error("disk {} is empty; give it a size: truncate -s 1G {}", name(.0), name(.0))]
    Empty(PathBuf),
    /// A raw disk whose last block is not complete, so that direct I/O cannot read it.
    #[error(
        "disk {} has {bytes} bytes, not a multiple of the {block} that direct=on needs here; leave direct=on out, or \
         make it longer: truncate -s %{block} {}",
        name(path),
        name(path)
    )]
    PartOfABlock {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// What its size must be a multiple of.
        block: u64,
    },
    /// A raw disk that begins like an image of another format.
    #[error(
        "disk {} looks like a qcow2 image; say format=qcow2, or format=raw if the guest is to see it as it is",
        name(.0)
    )]
    LooksLikeQcow2(PathBuf),
    /// By its option or its name it should be a qcow2 image, but it is not.
    #[error("disk {} is not a qcow2 image; say format=raw if it is a raw one", name(.0))]
    NoQcow2(PathBuf),
    /// Its content is encrypted.
    #[error(
        "disk {} is encrypted, which is not supported; make a copy that is not encrypted: qemu-img convert",
        name(.0)
    )]
    Encrypted(PathBuf),
    /// Its tables are wrong.
    #[error("cannot use disk {}: {fault}; {}", name(path), mended(fault, path))]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        fault: Fault,
    },
    /// It uses an unsupported feature of its format.
    #[error(
        "disk {} uses {feature}, and Paravane does not support that; make a copy without it: qemu-img convert -O qcow2 \
         {} COPY",
        name(path),
        name(path)
    )]
    Unsupported {
        /// Which.
        path: PathBuf,
        /// The feature.
        feature: String,
    },
    /// Its tables are too large to be checked.
    #[error(
        "cannot use disk {}: {fault}; make a raw disk of it: qemu-img convert -O raw {} COPY",
        name(path),
        name(path)
    )]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// What is too large.
        fault: Fault,
    },
    /// A backing file that is its own backing file, or one of too many.
    #[error(
        "disk {} is behind itself, or there are more than 64 files behind one another; put them together: qemu-img \
         commit or qemu-img convert",
        name(.0)
    )]
    Endless(PathBuf),
    /// imago cannot open the image.
    #[error(
        "cannot use disk {}: {error}; make a raw disk of it: qemu-img convert -O raw {} COPY",
        name(path),
        name(path)
    )]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file that an image refers to, like a backing file, cannot be used.
    #[error("disk {} needs another file: {}", name(image), needed(error))]
    Referenced {
        /// The image.
        image: PathBuf,
        /// What is wrong with the other file.
        error: Box<OpenError>,
    },
}

impl OpenError {
    /// The error for a fault in the image at `path`.
    pub(super) fn fault(path: &Path, fault: Fault) -> Self {
        let path = path.to_owned();
        match fault {
            Fault::Encrypted => Self::Encrypted(path),
            Fault::Unsupported(feature) => Self::Unsupported { path, feature },
            Fault::Io(error) => Self::Open { path, error },
            fault @ Fault::TooLarge(_) => Self::TooLarge { path, fault },
            fault => Self::Damaged { path, fault },
        }
    }
}

fn hint(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; change its permissions, or add \",readonly\"".to_owned()
        }
        io::ErrorKind::NotFound if is_called_qcow2(path) => {
            format!("; make it: qemu-img create -f qcow2 {} 1G", name(path))
        }
        io::ErrorKind::NotFound => format!("; make it: truncate -s 1G {}", name(path)),
        _ => String::new(),
    }
}

/// What is wrong with a file that an image refers to. Does not advise to create an empty one.
fn needed(error: &OpenError) -> String {
    match error {
        OpenError::Open { path, error } => {
            format!("cannot open {}: {error}; put it there, or name another: qemu-img rebase", name(path))
        }
        other => other.to_string(),
    }
}

/// Advice on how to get a correct image.
fn mended(fault: &Fault, path: &Path) -> String {
    let repair = format!("qemu-img check -r all {}", name(path));
    match fault {
        // No program repairs such a header.
        Fault::Header(_) => "use a copy of it that is not damaged".to_owned(),
        Fault::Outside { .. } => format!("copy it again, or repair it: {repair}"),
        _ => format!("repair it, or a copy of it: {repair}"),
    }
}

/// What kind of file it is that cannot be a disk, with advice.
fn instead(path: &Path) -> String {
    if path.is_dir() {
        format!("a directory; make an image of its files: mkfs.ext4 -d {} disk.img 64M", name(path))
    } else {
        "neither a file nor a block device; name one of these".to_owned()
    }
}
