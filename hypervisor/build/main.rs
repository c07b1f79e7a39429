//! Builds the reference guest's images, which the program embeds, and determines how the program is linked.

mod static_link;

use paravane_guest_build::images::Guest;

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
        guest.build()?;
    }
    static_link::emit("paravane")?;
    Ok(())
}
