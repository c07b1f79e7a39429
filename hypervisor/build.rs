//! Builds the reference guest's two images, which `src/images.rs` embeds.

use paravane_guest_build::images::{Guest, ImageError};

fn main() -> Result<(), ImageError> {
    println!("cargo::rerun-if-changed=build.rs");
    for (machine, prefix) in [("machine=\"pv\"", "pv-"), ("machine=\"bare\"", "bare-")] {
        let guest = Guest {
            directory: "../guest-kernel",
            package: "paravane-guest-kernel",
            bins: &["guest-kernel"],
            cfgs: &[machine],
            prefix,
        };
        guest.build()?;
    }
    Ok(())
}
