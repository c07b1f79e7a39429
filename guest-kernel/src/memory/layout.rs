//! The kernel's address space: which address is for what.
//!
//! | addresses | what is mapped there |
//! | --- | --- |
//! | [`VIRT_BASE`].. | all memory, frame by frame: the direct map. The kernel's image is part of it |
//! | [`SCRATCH`].. | pages that workloads and tests map and unmap |
//! | [`PRIVATE`].. | pages of address spaces other than the kernel's |
#![forbid(unsafe_code)]

use super::frames::{Frame, PAGE_SIZE};
use super::paging::SLOT_SIZE;

/// The address of frame 0; `build.rs` links the kernel at it.
pub const VIRT_BASE: u64 = 0x4000_0000;
/// The first address of the kernel's scratch pages.
pub const SCRATCH: u64 = 0x10_0000_0000;
/// The first address that each address space has to itself.
pub const PRIVATE: u64 = SLOT_SIZE;

/// The address of a frame in the direct map.
pub const fn direct_map(frame: Frame) -> u64 {
    VIRT_BASE + frame.0 * PAGE_SIZE
}
