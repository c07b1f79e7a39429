//! The reference guest's images, built from this very source tree by `build.rs`.
//!
//! One kernel, compiled twice with the same flags: only its machine layer differs. Only the bytes are
//! here; they are read like any other image.

/// The kernel that asks: hypercalls, event channels, direct paging.
pub static PV: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pv-guest-kernel.elf"));

/// The same kernel on a bare PC: privileged instructions and plain page-table stores.
pub static BARE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bare-guest-kernel.elf"));

/// A kernel for a bare PC that executes the sensitive instructions that need not trap, and prints what came of each.
pub static FIDELITY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bare-fidelity.elf"));

/// The programs that the kernel runs, in one static file, which Linux runs as well.
pub static PROGRAMS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/programs.elf"));
