//! Builds the small kernels that the tests boot; `src/guests.rs` embeds them.

use paravane_guest_build::images::{Guest, ImageError};

fn main() -> Result<(), ImageError> {
    println!("cargo::rerun-if-changed=build.rs");
    let guests = Guest {
        directory: "guests",
        package: "paravane-test-guests",
        bins: &[
            "hello",
            "hello-high",
            "conformance",
            "endings",
            "smp",
            "snapshot",
            "user-mode",
            "user-soup",
            "virtio-soup",
        ],
        cfgs: &[],
        prefix: "",
    };
    guests.build()?;
    let port = Guest {
        directory: "port",
        package: "paravane-port",
        bins: &["bare", "step-1", "step-2", "step-3", "step-4"],
        prefix: "port-",
        ..guests
    };
    port.build()
}
