//! Snapshots: a domain's memory and state in a file.
//!
//! * [`mod@format`] says what is in the file, and is the only module here that knows serde's and bincode's encodings.
//! * [`writer`] writes it under a temporary name and renames it, so that a file with the name that was asked for is
//!   whole.
//! * [`reader`] reads it and believes nothing: a file may come from a stranger. Everything that it says of places and
//!   lengths is checked against the file's own length, and no length in it makes this program allocate more than
//!   what bytes of the file stand for: [`mod@format`] says how much that is.
//!
//! Any thread may use this. What may not be done here: knowing what a state means. Whoever restores a domain validates
//! it, as it would what a guest says: a checksum is against mistakes, not against malice.

#![forbid(unsafe_code)]

pub mod format;
pub mod reader;
#[cfg(test)]
mod tests;
pub mod writer;

pub use format::Damage;
pub use reader::{OpenError, Snapshot};
pub use writer::{Parts, Summary, WriteError, write};
