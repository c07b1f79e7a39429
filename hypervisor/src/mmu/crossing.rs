//! What lets a user program call its kernel, and the kernel return, without leaving the guest: everything that the
//! ways between the two need to know. Plain data.
//!
//! The layers above say it with each entry, and an engine that has such ways says afterwards where the virtual CPU
//! was left. What may not be done here: deciding whether a guest may have them.

use crate::machine::memory::{Maddr, Mfn};

/// The two modes of a virtual CPU, as an engine needs to know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// The root that the kernel runs on: a validated L4 table.
    pub kernel_root: Mfn,
    /// The root that user programs run on: another one.
    pub user_root: Mfn,
    /// The stack for entries from user mode.
    pub kernel_sp: u64,
    /// Where a SYSCALL of a user program goes: a canonical address.
    pub entry: u64,
    /// Whether that masks upcalls.
    pub masks_upcalls: bool,
    /// The virtual CPU's info, of which the first byte says that an upcall is pending, the next that it is masked. It
    /// lies in a frame that the guest may write to as long as this is said.
    pub vcpu_info: Maddr,
    /// The base of GS in the mode that does not run.
    pub other_gs_base: u64,
    /// CS and SS with which the kernel returns to user mode: they can be loaded there.
    pub user_selectors: (u16, u16),
}

/// Where a virtual CPU was left that may have changed its mode by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossed {
    /// A user program runs.
    pub user: bool,
    /// The base of GS in the other mode.
    pub other_gs_base: u64,
    /// How often a mode was left for the other one without an exit, by what the guest says.
    pub crossings: u64,
}
