//! State shared with interrupt handlers: the bytes that were typed, and the timer interrupts that arrived.
//!
//! The machine layer's handlers write it, the kernel reads it. Everything here is atomic; interrupt handlers share
//! nothing else with the code that they interrupt. Nothing here may wait, allocate or print.
#![forbid(unsafe_code)]

pub mod timer;
mod typed;

pub use typed::{ByteQueue, TYPED};
