//! What can be wrong with a qcow2 image.

#![forbid(unsafe_code)]

use std::io;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Incompatible feature bit 0: the last program that wrote to it did not close it.
    #[error("it was not closed properly by the last program that wrote to it (its dirty bit is set)")]
    Dirty,
    /// Incompatible feature bit 1.
    #[error("it is marked as corrupt: another program has found damage in it")]
    Corrupt,
    /// An impossible value in the header.
    #[error("its header is wrong: {0}")]
    Header(String),
    /// Something lies outside the file.
    #[error(
        "{what} at offset {offset:#x} lies outside the file, which has {len} bytes (a copy that stopped early looks \
         like this)"
    )]
    Outside {
        /// What.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// The file's length, in bytes.
        len: u64,
    },
    /// Something does not begin at a cluster boundary.
    #[error("{what} at offset {offset:#x} does not begin at a multiple of the cluster size")]
    Unaligned {
        /// What.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
    },
    /// An entry of a table has bits that must be zero.
    #[error("an entry of {table} has the value {value:#x}, in which reserved bits are set")]
    Reserved {
        /// Of which table.
        table: &'static str,
        /// The entry.
        value: u64,
    },
    /// A cluster is in use, but its refcount is 0: the next allocation would take it.
    #[error("{what} at offset {offset:#x} is in a cluster that the refcounts say is free")]
    Uncounted {
        /// What.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
    },
    /// Two things are in one cluster.
    #[error("{what} at offset {offset:#x} is in a cluster that something else uses")]
    Overlap {
        /// What.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
    },
    /// The refcount is less than the number of users: the cluster would be freed while it is in use.
    #[error("{what} at offset {offset:#x} has more users than its refcount, {count}, says")]
    TooFew {
        /// What.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// The refcount.
        count: u32,
    },
    /// Marked as not shared (the COPIED flag), so that it would be written in place; but it is shared.
    #[error("{what} at offset {offset:#x} is marked as not shared, and its refcount is {count}")]
    Shared {
        /// What.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// The refcount.
        count: u32,
    },
    /// A refcount that no image needs.
    #[error("the refcount of the cluster at offset {offset:#x} is {count}, more than any image needs")]
    HugeCount {
        /// Which cluster, in bytes.
        offset: u64,
        /// Its refcount.
        count: u64,
    },
    /// In an image with a data file, a guest's cluster is not at the same offset in that file.
    #[error(
        "the guest's cluster at {guest:#x} is at offset {offset:#x} of the data file, and not at its own place"
    )]
    Displaced {
        /// The guest's offset, in bytes.
        guest: u64,
        /// The offset in the data file, in bytes.
        offset: u64,
    },
    /// More than is checked when a disk is opened.
    #[error("its tables are too large to be checked: {0}")]
    TooLarge(&'static str),
    /// A feature of the format that is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// Its content is encrypted.
    #[error("it is encrypted")]
    Encrypted,
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}
