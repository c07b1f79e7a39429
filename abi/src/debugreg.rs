//! Debug registers: `set_debugreg(number, value)`, `get_debugreg(number)`.
//!
//! The result of the second is the register itself, so a value in the range of error numbers cannot be distinguished
//! from an error. Sources: public/arch-x86/xen.h; SDM vol. 3, 17.2.

/// Number of registers; 4 and 5 are other names of 6 and 7.
pub const NR_DEBUGREGS: u32 = 8;
/// The first of four registers that hold addresses.
pub const DEBUGREG_ADDRESS_FIRST: u32 = 0;
/// The last of four registers that hold addresses.
pub const DEBUGREG_ADDRESS_LAST: u32 = 3;
/// The status register: which condition occurred.
pub const DEBUGREG_STATUS: u32 = 6;
/// The control register: which conditions are enabled.
pub const DEBUGREG_CONTROL: u32 = 7;
/// The status register after a reset: reserved bits are set.
pub const DEBUGREG_STATUS_DEFAULT: u64 = 0xffff_0ff0;
/// The control register after a reset: a reserved bit is set.
pub const DEBUGREG_CONTROL_DEFAULT: u64 = 0x400;
