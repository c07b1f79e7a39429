//! Non-maskable interrupts: `nmi_op(op, arg)`.
//!
//! Source: public/nmi.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Register the NMI handler: [`XennmiCallback`].
pub const XENNMI_REGISTER_CALLBACK: u32 = 0;
/// Unregister the NMI handler. No argument.
pub const XENNMI_UNREGISTER_CALLBACK: u32 = 1;

/// In the shared page's `nmi_reason`: an I/O check.
pub const XEN_NMIREASON_IO_ERROR: u64 = 1 << 0;
/// In the shared page's `nmi_reason`: a PCI system error.
pub const XEN_NMIREASON_PCI_SERR: u64 = 1 << 1;
/// In the shared page's `nmi_reason`: unknown to the hardware.
pub const XEN_NMIREASON_UNKNOWN: u64 = 1 << 2;

/// Argument of [`XENNMI_REGISTER_CALLBACK`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XennmiCallback {
    /// IN: virtual address of the handler.
    pub handler_address: u64,
    /// Padding.
    pub pad: u64,
}

layout!(XennmiCallback: 16 { handler_address @ 0, pad @ 8 });
