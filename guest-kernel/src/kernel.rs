//! The kernel's state: what [`boot`](crate::boot) sets up, and what everything above the machine layer is given.
//!
//! State only. A function of the kernel belongs in the module that it is about.
#![forbid(unsafe_code)]

use crate::machine::{Current, Machine};

/// The page-table primitives of the machine that this kernel is built for.
pub type CurrentMmu = <Current as Machine>::Mmu;

/// The memory of the machine that this kernel is built for.
pub type Memory = crate::memory::Memory<CurrentMmu>;

/// The state that there is one of.
pub struct Kernel {
    /// Frames, page tables, and the kernel's address space.
    pub memory: Memory,
    /// When the kernel was started, in nanoseconds of [`Machine::clock`].
    pub started: u64,
    /// The module (initial RAM disk) that came with the kernel, up to the end of its last frame; empty if there is
    /// none.
    pub module: &'static [u8],
    /// The command line that the kernel was started with.
    pub cmdline: &'static str,
}
