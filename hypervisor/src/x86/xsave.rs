//! The XSAVE area in the standard format (SDM vol. 1, 13.4).

/// Offset of the x87 control word, which begins the area.
pub const FCW: usize = 0;
/// The x87 control word after a reset (SDM vol. 1, 8.1.5).
pub const FCW_RESET: u16 = 0x37f;
/// Where the x87 registers are, and where the XMM registers.
pub const X87_REGISTERS: std::ops::Range<usize> = 32..160;
/// As above.
pub const XMM_REGISTERS: std::ops::Range<usize> = 160..416;
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
/// Where the upper halves of YMM0 to YMM15 are (SDM vol. 1, 13.5.2: CPUID says, and all processors say this).
pub const YMM_HIGH: std::ops::Range<usize> = 576..832;
