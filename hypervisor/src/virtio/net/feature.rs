//! Bit numbers of the features that do not depend on the back end (virtio 1.2, section 5.1.3).

/// The device has a MAC address.
pub(super) const MAC: u32 = 5;
/// A received frame may span several buffers.
pub(super) const MRG_RXBUF: u32 = 15;
/// The configuration space has `status`.
pub(super) const STATUS: u32 = 16;
