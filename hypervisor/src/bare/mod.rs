//! The PC that a bare kernel believes in.

#![forbid(unsafe_code)]

pub mod platform;
