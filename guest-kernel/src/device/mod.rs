//! Virtio devices: the same drivers on either machine, one file for each kind of device.
//!
//! The rings are those of `virtio-drivers`; the machine layer has the transport. A driver looks for its device when a
//! command needs it ([`find`]), and works with interrupts off ([`without_interrupts`]); it turns them on to wait.
//!
//! A new driver is a file here: it takes a [`DeviceTransport`], its queues are [`Queue`]s, its buffers [`Slots`].

pub mod block;
pub mod console;
pub mod entropy;
pub mod net;
pub mod vsock;

mod critical_section;
mod discovery;
mod error;
mod queue;
mod slots;
mod status;

pub use critical_section::{keep_interrupts_off, without_interrupts};
pub use discovery::{DeviceTransport, find, open, prepare};
pub use error::DeviceError;
pub use queue::Queue;
pub use slots::Slots;
