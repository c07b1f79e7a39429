//! Assistances that a guest enables: `vm_assist(cmd, type)`.
//!
//! Source: public/xen.h.

/// Enable an assistance.
pub const VMASST_CMD_ENABLE: u32 = 0;
/// Disable an assistance.
pub const VMASST_CMD_DISABLE: u32 = 1;

/// Emulate 4-GiB segments; 32-bit guests.
pub const VMASST_TYPE_4GB_SEGMENTS: u32 = 0;
/// Report when that happens; 32-bit guests.
pub const VMASST_TYPE_4GB_SEGMENTS_NOTIFY: u32 = 1;
/// Emulate stores to L1 tables, which are mapped read-only, as validated updates.
pub const VMASST_TYPE_WRITABLE_PAGETABLES: u32 = 2;
/// PAE page directories above 4 GiB; 32-bit guests.
pub const VMASST_TYPE_PAE_EXTENDED_CR3: u32 = 3;
/// The flags that traps push and `iret` loads include the I/O privilege level.
pub const VMASST_TYPE_ARCHITECTURAL_IOPL: u32 = 4;
/// Mark the copy of the run states in the guest's memory while it is being written.
pub const VMASST_TYPE_RUNSTATE_UPDATE_FLAG: u32 = 5;
/// Hide the machine-to-physical table from user mode.
pub const VMASST_TYPE_M2P_STRICT: u32 = 32;
