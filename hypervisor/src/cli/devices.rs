//! The options that give a guest devices.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context;
use paravane_abi::virtio::VIRTIO_MAX_DEVICES;

use super::paths::Paths;
use super::{disk, signals};
use crate::device::Device;
use crate::device::block::{Block, Options};
use crate::device::console::Console;
use crate::device::console::options::ConsoleOption;
use crate::device::console::stdio::{Outside, Stdio};
use crate::device::entropy::Entropy;
use crate::device::net::options::{BackendOption, NetOption};
use crate::device::net::user::Lost;
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
    /// Give the guest a virtio console besides the one that every guest has: stdio (it gets what is typed here, both
    /// print here), file=PATH[,append] (output only), unix=PATH[,server] (a socket), pty (a pseudo-terminal, whose
    /// name is told), loopback (for measurements: what is printed is typed). The built-in guest uses it with --cmdline console=virtio
    #[arg(long, value_name = "BACKEND[,..]")]
    console: Option<ConsoleOption>,
}

/// A guest's devices, and what has to be done for them outside.
pub(super) struct Opened {
    /// The devices.
    pub devices: Vec<Box<dyn Device>>,
    /// The other half of a console on standard input and output.
    pub stdio: Option<Outside>,
}

impl DeviceArgs {
    /// Opens what is behind the devices. `lost` is called with a reason, perhaps by another thread and later, when a
    /// network turns out not to be had.
    ///
    /// # Errors
    /// When something cannot be opened; the message says what to do.
    pub fn open(&self, lost: &Lost) -> anyhow::Result<Opened> {
        let single = [self.rng, self.vsock.is_some(), self.console.is_some()];
        let count = self.disk.len() + self.net.len() + single.iter().filter(|given| **given).count();
        anyhow::ensure!(
            count <= VIRTIO_MAX_DEVICES,
            "{count} devices are too many: a guest can have {VIRTIO_MAX_DEVICES}"
        );
        let mut devices: Vec<Box<dyn Device>> = Vec::new();
        if !self.disk.is_empty() || self.console.is_some() {
            signals::ignore_sigxfsz();
        }
        for options in &self.disk {
            devices.push(Box::new(Block::open(options)?));
        }
        if self.rng {
            devices.push(Box::new(Entropy));
        }
        for option in &self.net {
            devices.push(Box::new(option.open(lost).context("cannot give the guest a network device")?));
        }
        if let Some(option) = &self.vsock {
            devices.push(Box::new(option.open().context("cannot give the guest a socket device")?));
        }
        let mut stdio = None;
        if let Some(option) = &self.console {
            let (console, outside) = open_console(option).context("cannot give the guest a console")?;
            devices.push(Box::new(console));
            stdio = outside;
        }
        Ok(Opened { devices, stdio })
    }

    /// Adds the paths of what is written to or listened on, and of disks.
    pub fn add_paths<'a>(&'a self, paths: &mut Paths<'a>) {
        for disk in &self.disk {
            paths.read("--disk", &disk.path);
        }
        for option in &self.net {
            if let BackendOption::Unix { path, .. } = &option.backend {
                paths.write("--net", path);
            }
        }
        if let Some(option) = &self.vsock {
            paths.write("--vsock", &option.socket);
        }
        if let Some(path) = self.console.as_ref().and_then(ConsoleOption::path) {
            paths.write("--console", path);
        }
    }
}

fn open_console(option: &ConsoleOption) -> anyhow::Result<(Console, Option<Outside>)> {
    let announce = |path: &Path| eprintln!("paravane: the console is {}", path.display());
    if let Some(end) = option.open(announce)? {
        return Ok((Console::new(end)?, None));
    }
    let (end, outside) = Stdio::new(io::stdout().as_fd()).context("standard output cannot be used")?;
    Ok((Console::new(Box::new(end))?, Some(outside)))
}
