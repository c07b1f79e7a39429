//! Templates, byte by byte and on the processor.

mod encodings;
pub(crate) mod steps;
