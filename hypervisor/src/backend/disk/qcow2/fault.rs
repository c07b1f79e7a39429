//! What can be wrong with a qcow2 image, in words for its owner.

use std::io;

/// Why an image is not used.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Incompatible feature bit 0: whoever wrote it last did not get to close it.
    #[error("it was not closed properly by the last program that wrote to it (its dirty bit is set)")]
    Dirty,
    /// Incompatible feature bit 1.
    #[error("it is marked as corrupt: another program has found damage in it")]
    Corrupt,
    /// A field of the header that no image has.
    #[error("its header is wrong: {0}")]
    Header(String),
    /// Something is not where the file has bytes.
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
    /// Something does not begin where a cluster does.
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
    /// In use, and free by its refcount: the next allocation would take it.
    #[error("{what} at offset {offset:#x} is in a cluster that the refcounts say is free")]
    Uncounted {
        /// What.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
    },
    /// Two things in one cluster.
    #[error("{what} at offset {offset:#x} is in a cluster that something else uses")]
    Overlap {
        /// What.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
    },
    /// Fewer users counted than there are: it would be free while the last of them needs it.
    #[error("{what} at offset {offset:#x} has more users than its refcount, {count}, says")]
    TooFew {
        /// What.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// The refcount.
        count: u32,
    },
    /// Marked as its user's own (the COPIED flag), so that it would be written in place; but it is shared.
    #[error("{what} at offset {offset:#x} is marked as not shared, and its refcount is {count}")]
    Shared {
        /// What.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// The refcount.
        count: u32,
    },
    /// A refcount that no image of ours could come to.
    #[error("the refcount of the cluster at offset {offset:#x} is {count}, more than any image needs")]
    HugeCount {
        /// Which cluster, in bytes.
        offset: u64,
        /// Its refcount.
        count: u64,
    },
    /// With a file for its data, a guest's cluster is at the same offset there.
    #[error(
        "the guest's cluster at {guest:#x} is at offset {offset:#x} of the data file, and not at its own place"
    )]
    Displaced {
        /// The guest's offset, in bytes.
        guest: u64,
        /// That of the data file, in bytes.
        offset: u64,
    },
    /// More than is looked at when a disk is opened.
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
