//! Links each test guest where its test wants it.

use paravane_guest_build::link;

fn main() -> std::io::Result<()> {
    for bin in ["hello", "conformance", "endings", "user-soup", "virtio-soup"] {
        link::kernel_bin(bin, link::LOW)?;
    }
    link::kernel_bin("hello-high", link::HIGH)
}
