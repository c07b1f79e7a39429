//! The options that give a guest devices.

use crate::device::Device;
use crate::device::entropy::Entropy;

/// A guest's virtio devices. They are numbered in this order, whatever the order on the command line.
#[derive(Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// Give the guest a virtio entropy device: random bytes of the host's kernel
    #[arg(long)]
    rng: bool,
}

impl DeviceArgs {
    /// Opens what is behind the devices.
    ///
    /// # Errors
    /// When that cannot be done; the message says what to do.
    pub fn open(&self) -> anyhow::Result<Vec<Box<dyn Device>>> {
        let mut devices: Vec<Box<dyn Device>> = Vec::new();
        if self.rng {
            devices.push(Box::new(Entropy));
        }
        Ok(devices)
    }
}
