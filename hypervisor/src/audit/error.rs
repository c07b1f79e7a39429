//! Errors of the audit.

use crate::image::error::ImageError;

/// A file that cannot be audited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants and their fields are")]
pub enum AuditError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(
        "the file has no code: it holds the debugging information of another file; give that other file, \
         from which this one was split off"
    )]
    DebugOnly,
    #[error(
        "the file has no code: {kind} without an executable section or segment that has bytes in the file"
    )]
    NoCode { kind: &'static str },
    #[error(
        "{what} holds code and lies outside the file (offset {offset:#x}, {size:#x} bytes, of {file:#x}); \
         the file is cut off: build or copy it again"
    )]
    CutOff { what: String, offset: u64, size: u64, file: usize },
    #[error(
        "the file is not linked: where its code will lie decides which jumps fit; give the linked kernel"
    )]
    NotLinked,
}
