//! The PC that a bare kernel believes in.

pub mod platform;
