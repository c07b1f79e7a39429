//! Virtio devices: what they are and what they do with their queues, whatever way a driver reaches them by.
//!
//! A [`Device`] knows nothing of its transport: `hypercall::virtio` (paravirtual) and `platform::virtio_mmio`
//! (bare) each hold it in a [`Slot`], which gives it memory, queues and a way to interrupt, and takes them back.
//! Between [`Device::activate`] and the end of its workers a device reads and writes nothing but the
//! [`DeviceMemory`] that it was given.
//!
//! What a device does is done in threads of its own ([`Workers`]), which exist while it is active and at no
//! other time: a domain without devices pays nothing. A worker without work looks for some a little longer, where that
//! has been worth while ([`crate::host::busy_poll`]), and then sleeps.
//!
//! | Concern | Modules |
//! | --- | --- |
//! | Devices | [`block`], [`console`], [`entropy`], [`net`], [`vsock`] |
//! | Between a transport and a device | `slot`, `link`, `facts` |
//! | A queue and what a driver puts into it: any value, at any time | `queue`, `chain`, `memory` |
//! | Threads, and why they stopped | `worker`, `stops` |
//!
//! Two kinds of failure are kept apart. What the driver does wrong is [`Broken`]: a worker returns it, the
//! device stops and asks for a reset, the host goes on. What the host cannot do (a full disk, a link that is
//! gone) is a status inside a request, or a changed configuration, and the device goes on.
//!
//! What may not be done here: blocking a vCPU's thread, naming a transport or an engine, keeping guest memory
//! past the end of a worker.

#![forbid(unsafe_code)]

pub mod block;
mod chain;
pub mod console;
mod device;
pub mod entropy;
mod link;
pub mod net;
mod queue;
mod slot;
mod stop_log;
mod stop_report;
#[cfg(test)]
mod tests;
mod violation;
pub mod vsock;
mod worker;

pub use crate::machine::device_memory::{DeviceMemory, MemoryError, Region, Segment};
pub use chain::Chain;
pub use device::{Activation, Device, Info, MAX_QUEUES};
pub use link::{ConfigSpace, Interrupt, Link, MAX_CONFIG};
pub use queue::{Queue, QueueSetup};
pub use slot::{ActivateError, Slot};
pub use stop_log::{DeviceStops, Stopped, Tell};
pub use stop_report::{report, watch};
pub use violation::{Broken, Offence};
pub use worker::{Stop, Workers};
