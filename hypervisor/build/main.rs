//! Builds the two images of the reference guest, which the program embeds, and determines how the program is linked.

mod static_link;

use paravane_guest_build::images::Guest;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build");
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
    static_link::emit("paravane")?;
    Ok(())
}
