//! The options that describe devices: what a user writes, and the device that it means.

pub mod console;
pub mod net;
pub mod vsock;
