//! The interface between a device and what it is plugged into.

use std::io;
use std::sync::Arc;

use super::link::Link;
use super::queue::Queue;
use super::worker::Workers;
use crate::machine::device_memory::DeviceMemory;

/// Queues of a device at most.
pub const MAX_QUEUES: usize = paravane_abi::virtio::VIRTIO_MAX_QUEUES;

/// What a device is; it does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Device type (virtio 1.2, section 5).
    pub kind: u32,
    /// Features of this type that are offered; those of rings and transports are added by the [`Slot`](super::Slot).
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
    /// The configuration space as it is at first: at most [`MAX_CONFIG`](super::MAX_CONFIG) bytes.
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
