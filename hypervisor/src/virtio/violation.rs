//! Violations of the protocol by a driver.

use std::fmt;

/// Why a device stopped and needs a reset (virtio 1.2, section 2.1.2: DEVICE_NEEDS_RESET).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The available index is ahead of the ring by more than its size.
    #[error("the available index runs ahead of the ring")]
    Ahead,
    /// A descriptor number past the table's end.
    #[error("descriptor {0} is past the end of its table")]
    Descriptor(u16),
    /// A loop, or more descriptors than the queue has.
    #[error("a descriptor chain is longer than its queue, or a loop")]
    TooLong,
    /// The chain's buffers have more than 4 GiB.
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
    /// An indirect table whose length is 0 or not a multiple of a descriptor's.
    #[error("an indirect table of {0} bytes")]
    IndirectLength(u32),
    /// A buffer for the device to read after one for it to write.
    #[error("a readable buffer after a writable one")]
    Order,
    /// A malformed request.
    #[error("{0}")]
    Request(&'static str),
    /// Started before its features were accepted.
    #[error("it was started without features that were accepted")]
    NotNegotiated,
    /// Started with an impossible queue.
    #[error(
        "it was started with a queue that is malformed, has no entries or lies outside the guest's memory"
    )]
    Setup,
    /// The host has no resources to start the device.
    #[error("the host has no thread or descriptor left to start it with")]
    Host,
    /// The network does not support offloads that it had offered.
    #[error("the host refused the offloads that the guest had accepted")]
    Offloads,
    /// The device itself failed: a bug in Paravane.
    #[error("the device failed; this is a bug in Paravane, please report it")]
    Bug,
}

/// A violation, with its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offence {
    /// The queue that the worker had looked at last.
    pub queue: Option<u16>,
    /// What was wrong.
    pub what: Broken,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.queue {
            Some(queue) => write!(f, "queue {queue}: {}", self.what),
            None => write!(f, "{}", self.what),
        }
    }
}
