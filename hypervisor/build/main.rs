//! Builds the reference guest's images, which the program embeds, and determines how the program is linked.

mod static_link;

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use paravane_guest_build::images::Guest;

/// The images in a package that was made of this source (`cargo xtask package`): it has no source of guests.
const PREBUILT: &str = "prebuilt";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build");
    let kernel = Guest {
        directory: "../guest-kernel",
        package: "paravane-guest-kernel",
        bins: &["guest-kernel"],
        cfgs: &["machine=\"pv\""],
        prefix: "pv-",
    };
    let bare = ["machine=\"bare\""];
    let all = [
        Guest { bins: &["guest-kernel", "fidelity"], cfgs: &bare, prefix: "bare-", ..kernel },
        Guest {
            directory: "../guest-kernel/user",
            package: "paravane-user",
            bins: &["programs"],
            cfgs: &[],
            prefix: "",
        },
        kernel,
    ];
    for guest in all {
        if Path::new(guest.directory).exists() {
            guest.build()?;
        } else {
            let Guest { bins, prefix, .. } = guest;
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
