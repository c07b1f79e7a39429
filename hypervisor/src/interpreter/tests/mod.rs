//! The interpreter alone, and against the processor.

mod generator;
mod processor;
pub(super) mod sandbox;
