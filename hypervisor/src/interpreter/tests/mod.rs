//! The interpreter alone, and against the processor.

mod behaviour;
mod generator;
mod processor;
pub(super) mod sandbox;
