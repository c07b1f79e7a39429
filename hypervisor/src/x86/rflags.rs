//! RFLAGS (SDM vol. 1, 3.4.3).

/// Reads as 1 always.
pub const FIXED: u64 = 1 << 1;
/// Carry.
pub const CF: u64 = 1 << 0;
/// Parity.
pub const PF: u64 = 1 << 2;
/// Auxiliary carry.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Trap: single step.
pub const TF: u64 = 1 << 8;
/// Interrupts are enabled.
pub const IF: u64 = 1 << 9;
/// Direction of string instructions: downwards.
pub const DF: u64 = 1 << 10;
/// Overflow.
pub const OF: u64 = 1 << 11;
/// Position of the two bits of [`IOPL`].
pub const IOPL_SHIFT: u32 = 12;
/// The I/O privilege level.
pub const IOPL: u64 = 3 << IOPL_SHIFT;
/// Nested task.
pub const NT: u64 = 1 << 14;
/// Resume: set in the frame of a fault (SDM vol. 3, 17.3.1.1), so that a breakpoint there is passed over once.
pub const RF: u64 = 1 << 16;
/// Virtual-8086 mode.
pub const VM: u64 = 1 << 17;
/// Alignment checks at CPL 3.
pub const AC: u64 = 1 << 18;
/// CPUID is supported where this bit can be changed.
pub const ID: u64 = 1 << 21;

/// The flags that an arithmetic instruction sets.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
/// The flags that IRET and POPF load at CPL 3 with an IOPL of 0 (SDM vol. 2, IRET).
pub const LOADED_AT_CPL3: u64 = STATUS | TF | DF | NT | RF | AC | ID;
/// The flags that are always set while a guest runs: bit 1, and IF, so that the host's own interrupts arrive.
pub const ALWAYS_AT_CPL3: u64 = FIXED | IF;
