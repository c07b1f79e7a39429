//! Links the reference guest as a kernel, at the same base for both machine layers.

use paravane_guest_build::link;

fn main() -> std::io::Result<()> {
    link::kernel(link::LOW)
}
