//! Links all steps alike: what changes between them is their code.

use paravane_guest_build::link;

fn main() -> std::io::Result<()> {
    link::kernel(link::LOW)
}
