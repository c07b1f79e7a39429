//! The XSAVE area in the standard format (SDM vol. 1, 13.4).

/// Offset of MXCSR.
pub const MXCSR: usize = 24;
/// Offset of the header's bitmap of the state components in the area.
pub const XSTATE_BV: usize = 512;
/// Offset of the header's bitmap of the compacted format, which is zero in the standard format.
pub const XCOMP_BV: usize = 520;
/// Where the header ends. What is left of it is reserved and zero.
pub const HEADER_END: usize = 576;
/// MXCSR after a reset (SDM vol. 1, 11.6.4).
pub const MXCSR_RESET: u32 = 0x1f80;
