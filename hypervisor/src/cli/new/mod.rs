//! `paravane new`: a complete project of a kernel.
//!
//! The projects are the files under `hypervisor/templates`, which are also the listings of the documentation, and which
//! CI builds, tests and boots as this command writes them.

#![forbid(unsafe_code)]

mod lock;
mod name;
mod sdk;
mod template;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::print;
use crate::text::printable;
use sdk::Sdk;
use template::Template;

const HELP: &str = "\
Examples:
  paravane new my-kernel              heap, exceptions, a timer, and tests of them
  paravane new my-kernel --minimal    what says hello and powers off
  paravane new my-kernel --virtio     drivers of virtio devices, and tests with a device
  paravane new my-kernel --user       programs that are isolated from their kernel
  cd my-kernel
  cargo run                           boots it
  cargo test                          boots its tests, each in a guest of its own

It needs stable Rust and a C linker, no further target.";

/// Arguments of `paravane new`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct NewArgs {
    /// The folder to create; its last part is the kernel's name
    #[arg(value_name = "NAME")]
    path: PathBuf,
    /// As little as possible: a kernel that says hello
    #[arg(long)]
    minimal: bool,
    /// A kernel with virtio devices: it lists them, takes random bytes, reads a disk
    #[arg(long, conflicts_with = "minimal")]
    virtio: bool,
    /// A kernel that runs user programs, which can reach nothing of it
    #[arg(long, conflicts_with_all = ["minimal", "virtio"])]
    user: bool,
    /// The folder of a copy of Paravane's source, whose SDK the kernel is to use [default: the one that this program
    /// was built from, if it is still there, otherwise the package registry]
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

impl NewArgs {
    fn template(&self) -> &'static Template {
        match self {
            Self { minimal: true, .. } => &template::MINIMAL,
            Self { virtio: true, .. } => &template::VIRTIO,
            Self { user: true, .. } => &template::USER,
            _ => &template::USUAL,
        }
    }
}

/// Writes the project; the exit status of the process.
pub(super) fn run(args: &NewArgs) -> anyhow::Result<u8> {
    let name = name::of(&args.path)?;
    let sdk = Sdk::find(args.sdk.as_deref())?;
    let shown = printable::path(&args.path).to_string();
    ensure!(!args.path.exists(), "{shown} exists already; give another name, or move it away");
    for file in args.template().files(name, &sdk) {
        let path = args.path.join(file.path);
        write(&path, &file.text).with_context(|| format!("cannot write {}", printable::path(&path)))?;
    }
    let sdk = printable::lines(&sdk.to_string()).to_string();
    print(&format!(
        "created the kernel `{name}` in {shown}, with the SDK {sdk}\n\n  cd {shown}\n  cargo run     boots it\n  \
         cargo test    boots its tests\n"
    ))?;
    if !is_on_path() {
        io::stderr().write_all(
            b"\nparavane: cargo will start `paravane`, which is in no folder of PATH: install it there (cargo install), \
              or name its file in .cargo/config.toml\n",
        )?;
    }
    Ok(0)
}

/// Writes a new file, and the folders above it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::File::create_new(path)?.write_all(text.as_bytes())
}

/// Whether cargo will find this program under its name.
fn is_on_path() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join("paravane").is_file())
}
