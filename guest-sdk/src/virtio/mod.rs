//! Virtio devices, over one hypercall and event channels.
//!
//! [`devices`] lists the devices from the table in the shared page. [`PvTransport`] gives a device to any driver of
//! the crate `virtio-drivers`: negotiation and queues are collected in the guest's own memory, and one hypercall puts
//! all of them into effect when the driver says that it is ready. [`PoolHal`] is the memory for queues and buffers: a
//! pool of frames, shared with each device while it is active.
//!
//! ```no_run
//! use paravane_guest::virtio::drivers::device::rng::VirtIORng;
//! use paravane_guest::virtio::{self, POOL, PoolHal, PvTransport};
//!
//! /// Fills `bytes` from the first entropy device. Devices can access the 64 frames of the pool, and no other memory.
//! fn entropy(boot: &paravane_guest::Boot, bytes: &mut [u8]) -> Option<usize> {
//!     let (_, mut free) = boot.take_memory().ok()?;
//!     POOL.give_bytes(boot.memory(), free.take_bytes(64)?).ok()?;
//!     let device = virtio::devices().find(|device| device.kind() == 4)?;
//!     let transport = PvTransport::new(device, boot.memory(), |_port| ()).ok()?;
//!     let mut driver = VirtIORng::<PoolHal, _>::new(transport).ok()?;
//!     // The driver does not report that the host refused to start its device.
//!     if device.status() == 0 {
//!         return None;
//!     }
//!     driver.request_entropy(bytes).ok()
//! }
//! ```
//!
//! On Xen, and on a host without devices, [`devices`] is empty, and the rest of this module is of no use.
//!
//! This module must not make a hypercall for an answer that is in memory, nor let a device access memory that was not
//! given to the pool.

mod pool;
mod rings;
mod table;
#[cfg(test)]
mod tests;
mod transport;

pub use pool::{POOL, Pool, PoolError, PoolHal};
pub use rings::{Kicks, Rings, kicks};
pub use table::{Device, devices};
pub use transport::{Interrupts, PvTransport, Unsuitable};

/// The crate whose drivers these transports are for.
pub use virtio_drivers as drivers;
