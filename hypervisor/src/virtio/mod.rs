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
pub mod entropy;
mod link;
pub mod net;
mod queue;
mod slot;
mod stops;
#[cfg(test)]
mod tests;
pub mod vsock;
mod worker;

use std::io;
use std::sync::Arc;

pub use crate::machine::device_memory::Segment;
pub use crate::machine::device_memory::{DeviceMemory, MemoryError, Region};
pub use chain::Chain;
pub use link::{ConfigSpace, Interrupt, Link};
pub use queue::{Queue, QueueSetup};
pub use slot::{ActivateError, Slot};
pub use stops::{DeviceStops, Offence, Stopped, Tell, report, watch};
pub use worker::{Stop, Workers};

/// Bytes of a configuration space at most.
pub const MAX_CONFIG: usize = paravane_abi::virtio::VIRTIO_MAX_CONFIG;
/// Queues of a device at most.
pub const MAX_QUEUES: usize = paravane_abi::virtio::VIRTIO_MAX_QUEUES;

/// What a device is; it does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Device type (virtio 1.2, section 5).
    pub kind: u32,
    /// Features of this type that are offered; those of rings and transports are added by the [`Slot`].
    pub features: u64,
    /// How many queues, at most [`MAX_QUEUES`].
    pub queues: u16,
    /// Entries in each at most: a power of two.
    pub queue_size: u16,
}

/// A virtio device.
pub trait Device: Send {
    /// What it is.
    fn info(&self) -> Info;
    /// What tells it from others of its kind in a message to the user.
    fn label(&self) -> Option<String> {
        None
    }
    /// The configuration space as it is at first: at most [`MAX_CONFIG`] bytes.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Whether a driver may accept just these features; each of them is offered.
    fn accepts(&self, _features: u64) -> bool {
        true
    }
    /// The driver wrote to the configuration space, within its length. What is not for it to change stays.
    fn write_config(&mut self, _link: &Link, _offset: usize, _bytes: &[u8]) {}
    /// Starts work: gives the queues to threads, by [`Workers::spawn`]. Called on the vCPU's thread, so it must
    /// not wait for anything. Each worker begins by looking at its queues: the driver may not kick for what is
    /// in them already.
    ///
    /// # Errors
    /// When the host has no thread or descriptor left; workers that were started already are then stopped.
    fn activate(&mut self, activation: Activation, workers: &mut Workers) -> io::Result<()>;
    /// The driver has let go, and no worker is left: what it changed is again as it was at first.
    fn reset(&mut self, _link: &Link) {}
}

/// What a device is given to work with.
#[derive(Debug)]
pub struct Activation {
    /// Features that the driver accepted, those of rings and transports among them.
    pub features: u64,
    /// The queues; `None` those that the driver does not use.
    pub queues: Vec<Option<Queue>>,
    /// The memory that descriptors name.
    pub memory: DeviceMemory,
    /// Configuration changes go through this.
    pub link: Arc<Link>,
}

impl Activation {
    /// Takes a queue; `None` if the driver does not use it.
    pub fn queue(&mut self, index: usize) -> Option<Queue> {
        self.queues.get_mut(index)?.take()
    }
}

/// What a driver did that a device does not go on after (virtio 1.2, section 2.1.2: DEVICE_NEEDS_RESET).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// More buffers made available than the ring holds, or an index that jumped.
    #[error("the available index runs ahead of the ring")]
    Ahead,
    /// A descriptor number past the table's end.
    #[error("descriptor {0} is past the end of its table")]
    Descriptor(u16),
    /// A loop, or more descriptors than the queue has.
    #[error("a descriptor chain is longer than its queue, or a loop")]
    TooLong,
    /// The chain's buffers make more than 4 GiB.
    #[error("a descriptor chain describes more than 4 GiB")]
    TooMuch,
    /// An address that is not the device's memory.
    #[error("{len} bytes at {address:#x} are not memory of the device")]
    Address {
        /// Where.
        address: u64,
        /// How many bytes.
        len: u64,
    },
    /// An indirect table in an indirect table, or in the middle of a chain, or not negotiated.
    #[error("an indirect descriptor where none may be")]
    Indirect,
    /// An indirect table whose length is no table's.
    #[error("an indirect table of {0} bytes")]
    IndirectLength(u32),
    /// A buffer for the device to read after one for it to write.
    #[error("a readable buffer after a writable one")]
    Order,
    /// A request that is none of the device's type.
    #[error("{0}")]
    Request(&'static str),
    /// Started before its features were accepted.
    #[error("it was started without features that were accepted")]
    NotNegotiated,
    /// Started with a queue that cannot be.
    #[error(
        "it was started with a queue that is malformed, has no entries or lies outside the guest's memory"
    )]
    Setup,
    /// The host has no means to start the device.
    #[error("the host has no thread or descriptor left to start it with")]
    Host,
    /// What is behind a network interface does not do what its features promised.
    #[error("the host refused the offloads that the guest had accepted")]
    Offloads,
    /// The device itself failed: a bug of ours.
    #[error("the device failed; this is a bug in Paravane, please report it")]
    Bug,
}
