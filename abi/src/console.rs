//! Consoles: the hypervisor's own (`console_io`) and the ring that a domain shares with its console service.
//!
//! `console_io(cmd, count, buffer)`. Sources: public/xen.h, public/io/console.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Write `count` bytes of `buffer`. Result: 0.
pub const CONSOLEIO_WRITE: u32 = 0;
/// Read up to `count` bytes into `buffer`. Result: how many were read.
pub const CONSOLEIO_READ: u32 = 1;

/// Bytes in the ring towards the guest.
pub const XENCONS_IN_SIZE: usize = 1024;
/// Bytes in the ring from the guest.
pub const XENCONS_OUT_SIZE: usize = 2048;

/// The console ring: the frame and event channel are in the start info.
///
/// Indices are free-running and wrap at 2^32; an index modulo the ring's size is a position in it. The producer
/// advances `prod`, the consumer `cons`, and each notifies the other's port afterwards.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenconsInterface {
    /// OUT: bytes for the guest.
    pub in_: [u8; XENCONS_IN_SIZE],
    /// IN: bytes from the guest.
    pub out: [u8; XENCONS_OUT_SIZE],
    /// IN: how many bytes the guest has taken.
    pub in_cons: u32,
    /// OUT: how many bytes the service has put in.
    pub in_prod: u32,
    /// OUT: how many bytes the service has taken.
    pub out_cons: u32,
    /// IN: how many bytes the guest has put in.
    pub out_prod: u32,
}

layout!(XenconsInterface: 3088 {
    in_ @ 0, out @ 1024, in_cons @ 3072, in_prod @ 3076, out_cons @ 3080, out_prod @ 3084,
});
default_is_zeroed!(XenconsInterface);

/// Position of index `idx` in a ring of `size` bytes, a power of two.
#[must_use]
pub const fn mask_xencons_idx(idx: u32, size: usize) -> usize {
    (idx as usize) & size.wrapping_sub(1)
}
