//! Templates, byte by byte and on the processor.

mod encodings;
mod steps;
