//! The options that describe devices: for each, how it is parsed, and how the device and its back end are opened.
//!
//! A new option gets a file here, a field in `args.rs`, and a section in docs/devices.md. This is the only place in
//! which text becomes a device; the rooms below are given values. All of it runs on the main thread, before the guest
//! starts.

#![forbid(unsafe_code)]

mod args;
pub mod console;
pub mod disk;
pub mod net;
pub mod vsock;

pub(super) use args::{DeviceArgs, Opened, TooMany};
