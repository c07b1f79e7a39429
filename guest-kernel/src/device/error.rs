//! Why a device cannot be used.
#![forbid(unsafe_code)]

use paravane_guest::virtio::drivers::Error;

/// Why there is no working device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The machine has no device of this kind.
    Absent,
    /// There is no memory for the device.
    OutOfMemory,
    /// The host did not start the device.
    NotStarted,
    /// The device stopped because of a wrong request, and needs a reset.
    NeedsReset,
    /// The device or its driver failed.
    Failed(Error),
}

impl DeviceError {
    /// The reason in one word, for a result line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Absent => "no-such-device",
            Self::OutOfMemory => "no-memory-for-device",
            Self::NotStarted => "device-not-started",
            Self::NeedsReset => "device-needs-reset",
            Self::Failed(Error::IoError) => "io-error",
            Self::Failed(Error::QueueFull) => "queue-full",
            Self::Failed(Error::Unsupported) => "unsupported",
            Self::Failed(_) => "driver-failed",
        }
    }
}

impl core::fmt::Display for DeviceError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Absent => "there is no such device",
            Self::OutOfMemory => "there is no memory for the device",
            Self::NotStarted => "the host did not start the device",
            Self::NeedsReset => "the device stopped and needs a reset",
            Self::Failed(error) => return write!(f, "{error}"),
        })
    }
}

impl core::error::Error for DeviceError {}

impl From<Error> for DeviceError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}
