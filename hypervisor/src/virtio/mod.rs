//! Virtio devices, independent of the transport by which a driver reaches them.
//!
//! A [`Device`] does not know its transport: `pv::hypercall::virtio` (paravirtual) and `bare::platform::virtio_mmio`
//! (bare) each hold it in a [`Slot`], which gives it memory, queues and a way to interrupt, and takes them back.
//! Between [`Device::activate`] and the end of its workers, a device accesses no guest memory except the
//! [`DeviceMemory`] that it was given.
//!
//! Threads: a device works in threads of its own ([`Workers`]), which exist only while it is active, so that a domain
//! without devices pays nothing. A worker without work polls its queues for a while, where that has been worth it
//! before ([`crate::host::busy_poll`]), and then sleeps. [`Slot`]'s functions, [`Device::activate`] and
//! [`Device::write_config`] run on the vCPU's thread. Nothing here is async-signal-safe.
//!
//! | Concern | Modules |
//! | --- | --- |
//! | Devices | [`block`], [`console`], [`entropy`], [`net`], [`vsock`] |
//! | Between a transport and a device | `device`, `slot`, `link` |
//! | A queue and its untrusted content | `queue`, `chain` |
//! | Threads; why devices stopped | `worker`; `violation`, `stop_log`, `stop_report` |
//!
//! There are two kinds of failure. A driver's violation of the protocol is a [`Broken`]: the worker returns it, the
//! device stops and asks for a reset. A failure of the host (a full disk, a network that is gone) is a status in a
//! request or a change of the configuration, and the device goes on.
//!
//! What may not be done here: blocking a vCPU's thread, naming a transport or an engine, using guest memory after the
//! end of a worker.

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
