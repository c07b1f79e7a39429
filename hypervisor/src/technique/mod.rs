//! The techniques: each one way to make one machine look like another to a kernel.

#![forbid(unsafe_code)]

pub mod pv;
pub mod trap;
