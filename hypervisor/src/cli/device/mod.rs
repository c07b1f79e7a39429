//! The options that describe devices: what a user writes, and the device that it means.

mod args;
pub mod console;
pub mod disk;
pub mod net;
pub mod vsock;

pub(super) use args::{DeviceArgs, Opened, TooMany};
