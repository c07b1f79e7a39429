//! The options that give a guest devices.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context;
use paravane_abi::virtio::VIRTIO_MAX_DEVICES;

use super::console::ConsoleOption;
use super::disk::DiskOption;
use super::net::{BackendOption, NetOption};
use super::vsock::VsockOption;
use crate::backend::console::stdio::{Outside, Stdio};
use crate::backend::net::user::Lost;
use crate::cli::paths::Paths;
use crate::host::notice::notice;
use crate::text::printable;
use crate::virtio::Device;
use crate::virtio::console::Console;
use crate::virtio::entropy::Entropy;

/// A guest's virtio devices. They are numbered in this order, whatever the order on the command line.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Devices (docs/devices.md)")]
// Brackets in these texts are those of `--help`, not links.
#[allow(rustdoc::broken_intra_doc_links)]
pub(in crate::cli) struct DeviceArgs {
    /// A disk: a file or a block device. May be repeated
    ///
    /// Options: readonly, format=raw|qcow2, queues=N, direct=on|off, id=TEXT. A comma in PATH is doubled.
    #[arg(long, value_name = "PATH[,OPTION]...")]
    disk: Vec<DiskOption>,
    /// An entropy device, fed by the host's kernel
    #[arg(long)]
    rng: bool,
    /// A network interface: user, tap=NAME, unix=PATH or peer. May be repeated
    ///
    /// user: the host's network, through passt; with tcp=8080:80 the guest's port 80 is this host's 8080, likewise
    /// udp=. tap=NAME: a TAP interface. unix=PATH[,server]: a socket with the protocol of passt and QEMU. peer: a
    /// peer for measurements. Each may be followed by mac=ADDRESS.
    #[arg(long, value_name = "BACKEND[,OPTION]...")]
    net: Vec<NetOption>,
    /// A socket device: connections between the guest, at this address (CID), and the host
    ///
    /// The guest's connections to port P of the host arrive at the socket PATH_P here. A program that connects to PATH
    /// and sends "CONNECT P" and a newline is connected to the guest's port P.
    #[arg(long, value_name = "cid=NUMBER,socket=PATH")]
    vsock: Option<VsockOption>,
    /// A second console: stdio, pty, unix=PATH, file=PATH or loopback
    ///
    /// stdio: it gets what is typed here, and both consoles print here. pty: a pseudo-terminal, whose name is printed.
    /// unix=PATH[,server]: a socket. file=PATH[,append]: output only. loopback: its output comes back as its input, for
    /// measurements. The built-in guest uses this console with --cmdline console=virtio.
    #[arg(long, value_name = "BACKEND[,OPTION]...")]
    console: Option<ConsoleOption>,
}

/// A guest's devices, and what the command line has to do for them.
pub(in crate::cli) struct Opened {
    /// The devices.
    pub devices: Vec<Box<dyn Device>>,
    /// The command line's half of a console on standard input and output.
    pub stdio: Option<Outside>,
}

/// More devices than a guest can have.
#[derive(Debug, thiserror::Error)]
#[error("{0} devices are too many: a guest can have {VIRTIO_MAX_DEVICES}")]
pub(in crate::cli) struct TooMany(usize);

impl DeviceArgs {
    /// Opens the devices with their back ends. `lost` is called with a reason if passt fails to start a network; that
    /// can be later, and on another thread.
    ///
    /// # Errors
    /// When a back end cannot be opened; the message says what to do.
    pub fn open(&self, lost: &Lost) -> anyhow::Result<Opened> {
        let single = [self.rng, self.vsock.is_some(), self.console.is_some()];
        let count = self.disk.len() + self.net.len() + single.iter().filter(|given| **given).count();
        if count > VIRTIO_MAX_DEVICES {
            return Err(TooMany(count).into());
        }
        let mut devices: Vec<Box<dyn Device>> = Vec::new();
        for option in &self.disk {
            devices.push(Box::new(option.open()?));
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

    /// Adds the paths of disks, and of files and sockets that a device writes to or listens on.
    pub fn add_paths<'a>(&'a self, paths: &mut Paths<'a>) {
        for disk in &self.disk {
            paths.disk(&disk.disk.path, disk.disk.readonly);
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
    let announce = |path: &Path| notice(format_args!("the console is {}", printable::path(path)));
    if let Some(end) = option.open(announce)? {
        return Ok((Console::new(end)?, None));
    }
    let (end, outside) = Stdio::new(io::stdout().as_fd()).context("standard output cannot be used")?;
    Ok((Console::new(Box::new(end))?, Some(outside)))
}
