//! The interface of a device.

use std::io;
use std::sync::Arc;

use super::link::Link;
use super::queue::Queue;
use super::worker::Workers;
use crate::machine::device_memory::DeviceMemory;

/// Queues of a device at most.
pub const MAX_QUEUES: usize = paravane_abi::virtio::VIRTIO_MAX_QUEUES;

/// Constant properties of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Device type (virtio 1.2, section 5).
    pub kind: u32,
    /// The offered features of this device type; the [`Slot`](super::Slot) adds those of rings and transports.
    pub features: u64,
    /// Number of queues, at most [`MAX_QUEUES`].
    pub queues: u16,
    /// Entries of each queue at most: a power of two.
    pub queue_size: u16,
}

/// A virtio device.
pub trait Device: Send {
    /// Its properties.
    fn info(&self) -> Info;
    /// A name that distinguishes it from others of its kind in messages to the user.
    fn label(&self) -> Option<String> {
        None
    }
    /// The initial configuration space: at most [`MAX_CONFIG`](super::MAX_CONFIG) bytes.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Whether a driver may accept this set of features, all of which are offered.
    fn accepts(&self, _features: u64) -> bool {
        true
    }
    /// The driver wrote to the configuration space, within its length. Fields that it may not change stay as they are.
    fn write_config(&mut self, _link: &Link, _offset: usize, _bytes: &[u8]) {}
    /// Starts work: gives the queues to threads, by [`Workers::spawn`]. Called on the vCPU's thread, so it must not
    /// wait. Each worker first looks at its queues, because the driver may not kick for requests that are there
    /// already.
    ///
    /// # Errors
    /// When the host has no thread or descriptor left. Workers that have started are then stopped.
    fn activate(&mut self, activation: Activation, workers: &mut Workers) -> io::Result<()>;
    /// The driver has reset the device, and no worker is left. Restores the initial configuration.
    fn reset(&mut self, _link: &Link) {}
}

/// What an active device works with.
#[derive(Debug)]
pub struct Activation {
    /// Features that the driver accepted, including those of rings and transports.
    pub features: u64,
    /// The queues; `None` for those that the driver does not use.
    pub queues: Vec<Option<Queue>>,
    /// The memory that descriptors may refer to.
    pub memory: DeviceMemory,
    /// The way to change the configuration.
    pub link: Arc<Link>,
}

impl Activation {
    /// Takes a queue; `None` if the driver does not use it.
    pub fn queue(&mut self, index: usize) -> Option<Queue> {
        self.queues.get_mut(index)?.take()
    }
}
