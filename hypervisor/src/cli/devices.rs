//! The options that give a guest devices.

use anyhow::Context;
use paravane_abi::virtio::VIRTIO_MAX_DEVICES;

use super::{disk, signals};
use crate::device::Device;
use crate::device::block::{Block, Options};
use crate::device::entropy::Entropy;
use crate::device::net::options::NetOption;
use crate::device::vsock::options::VsockOption;

/// A guest's virtio devices. They are numbered in this order, whatever the order on the command line.
#[derive(Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// Give the guest a disk: PATH[,readonly][,format=raw|qcow2][,queues=N][,direct=on|off][,id=TEXT]; a comma in
    /// PATH is doubled. May be given several times
    #[arg(long, value_name = "PATH[,OPTION]...", value_parser = disk::parse)]
    disk: Vec<Options>,
    /// Give the guest a virtio entropy device: random bytes of the host's kernel
    #[arg(long)]
    rng: bool,
    /// Give the guest a network device: tap=NAME (a TAP interface), user (the host's network, through passt; with
    /// tcp=8080:80 its port 80 is this host's 8080), unix=PATH[,server] (a socket that speaks passt's or QEMU's
    /// protocol), peer (a sink for measurements). After any: mac=ADDRESS. May be repeated
    #[arg(long, value_name = "BACKEND[,..]")]
    net: Vec<NetOption>,
    /// Give the guest a socket device with this address: its port P calls PATH_P here, and a program here that
    /// connects to PATH and sends "CONNECT P" calls the guest's port P
    #[arg(long, value_name = "cid=NUMBER,socket=PATH")]
    vsock: Option<VsockOption>,
}

impl DeviceArgs {
    /// Opens what is behind the devices.
    ///
    /// # Errors
    /// When that cannot be done; the message says what to do.
    pub fn open(&self) -> anyhow::Result<Vec<Box<dyn Device>>> {
        let count =
            self.disk.len() + usize::from(self.rng) + self.net.len() + usize::from(self.vsock.is_some());
        anyhow::ensure!(
            count <= VIRTIO_MAX_DEVICES,
            "{count} devices are too many: a guest can have {VIRTIO_MAX_DEVICES}"
        );
        let mut devices: Vec<Box<dyn Device>> = Vec::new();
        if !self.disk.is_empty() {
            signals::ignore_sigxfsz();
        }
        for options in &self.disk {
            devices.push(Box::new(Block::open(options)?));
        }
        if self.rng {
            devices.push(Box::new(Entropy));
        }
        for option in &self.net {
            devices.push(Box::new(option.open().context("cannot give the guest a network device")?));
        }
        if let Some(option) = &self.vsock {
            devices.push(Box::new(option.open().context("cannot give the guest a socket device")?));
        }
        Ok(devices)
    }
}
