//! Links each test guest at the address that its test needs.

use paravane_guest_build::link;

fn main() -> std::io::Result<()> {
    for bin in ["hello", "conformance", "endings", "smp", "snapshot", "user-mode", "user-soup", "virtio-soup"]
    {
        link::kernel_bin(bin, link::LOW)?;
    }
    link::kernel_bin("hello-high", link::HIGH)
}
