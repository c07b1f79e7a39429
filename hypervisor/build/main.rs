//! Builds the reference guest's images, which the program embeds, and determines how the program is linked.

mod static_link;

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use paravane_guest_build::images::Guest;

/// The images in a package that was made of this source (`cargo xtask package`): it has no source of guests.
const PREBUILT: &str = "prebuilt";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build");
    let both: [(_, _, &[&str]); 2] = [
        ("machine=\"pv\"", "pv-", &["guest-kernel"]),
        ("machine=\"bare\"", "bare-", &["guest-kernel", "fidelity"]),
    ];
    for (machine, prefix, bins) in both {
        let guest = Guest {
            directory: "../guest-kernel",
            package: "paravane-guest-kernel",
            bins,
            cfgs: &[machine],
            prefix,
        };
        if Path::new(guest.directory).exists() {
            guest.build()?;
        } else {
            bins.iter().try_for_each(|bin| take_prebuilt(&format!("{prefix}{bin}.elf")))?;
        }
    }
    static_link::emit("paravane")?;
    Ok(())
}

fn take_prebuilt(name: &str) -> io::Result<()> {
    let from = Path::new(PREBUILT).join(name);
    println!("cargo::rerun-if-changed={}", from.display());
    let to = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join(name);
    let why = |error| io::Error::other(format!("neither the guests' source nor {}: {error}", from.display()));
    fs::copy(&from, to).map(drop).map_err(why)
}
