//! The images of the test guests, built by `build.rs`.

/// Prints one line and powers off; linked in the lower half.
pub static HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello.elf"));

/// The same kernel linked at 0xffffffff80000000.
pub static HELLO_HIGH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello-high.elf"));

/// Makes every kind of hypercall, right and wrong, and prints a line for each outcome.
pub static CONFORMANCE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/conformance.elf"));

/// Ends in the way that `test=NAME` on its command line says.
pub static ENDINGS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/endings.elf"));

/// Misuses every virtio device, as `seed=N` determines, `steps=N` times.
pub static VIRTIO_SOUP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/virtio-soup.elf"));

/// Runs random user programs, as `seed=N` determines, `programs=N` of them, and checks that they cannot harm it.
pub static USER_SOUP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/user-soup.elf"));
