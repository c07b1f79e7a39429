//! The images of the test guests, built by `build.rs`.

/// Prints one line and powers off; linked in the lower half.
pub static HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello.elf"));

/// The same kernel linked at 0xffffffff80000000.
pub static HELLO_HIGH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello-high.elf"));

/// Makes every kind of hypercall, correct and incorrect ones, and prints a line for each outcome.
pub static CONFORMANCE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/conformance.elf"));

/// Ends in the way that `test=NAME` on its command line selects.
pub static ENDINGS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/endings.elf"));

/// Starts its other vCPUs, of which there are to be `vcpus=N`, and checks what they do to each other.
pub static SMP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/smp.elf"));

/// Has a timer on each of its `vcpus=N`, and answers what is typed: to be saved and restored.
pub static SNAPSHOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/snapshot.elf"));

/// Checks the SDK's user mode, and lets programs attack their kernel.
pub static USER_MODE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/user-mode.elf"));

/// Misuses every virtio device, in `steps=N` random steps from `seed=N`.
pub static VIRTIO_SOUP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/virtio-soup.elf"));

/// Runs `programs=N` random user programs from `seed=N`, and checks that they cannot harm it.
pub static USER_SOUP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/user-soup.elf"));

/// The kernel of the porting guide, as it is for a bare PC and after each step of its port.
pub static PORT: [&[u8]; 5] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/port-bare.elf")),
    include_bytes!(concat!(env!("OUT_DIR"), "/port-step-1.elf")),
    include_bytes!(concat!(env!("OUT_DIR"), "/port-step-2.elf")),
    include_bytes!(concat!(env!("OUT_DIR"), "/port-step-3.elf")),
    include_bytes!(concat!(env!("OUT_DIR"), "/port-step-4.elf")),
];
