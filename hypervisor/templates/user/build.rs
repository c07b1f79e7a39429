use std::error::Error;

use paravane_guest_build::{images, link};

/// The programs of the kernel: files in `programs/src/bin`.
const PROGRAMS: &[&str] = &["hello", "spy", "endless"];

fn main() -> Result<(), Box<dyn Error>> {
    link::kernel(link::LOW)?;
    let programs = images::Guest {
        directory: "programs",
        package: "my-kernel-programs",
        bins: PROGRAMS,
        cfgs: &[],
        prefix: "",
    };
    // As NAME.elf in OUT_DIR, where `src/programs.rs` includes them.
    Ok(programs.build()?)
}
