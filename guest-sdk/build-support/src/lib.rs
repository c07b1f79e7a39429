//! The build-time part of the guest SDK: linking kernels and their programs, and embedding either.
//!
//! # Principles
//!
//! * A kernel builds for the host's own target with stable Rust; link script and flags make it a kernel.
//! * This crate runs on the build machine before the SDK is compiled, so it must not depend on the SDK.
//!
//! # Map
//!
//! * [`link`] is for a kernel's own `build.rs`: it passes the link script to the linker, so that a kernel builds for
//!   `x86_64-unknown-linux-gnu` without a custom target. [`link::program`] does so for programs that run in a kernel's
//!   user mode.
//! * [`images`] is for what embeds kernels (the `paravane` program, the system tests), and for kernels that embed
//!   programs: its `build.rs` builds them with the same Cargo, lock file and compiler.
//!
//! The link scripts themselves are `kernel.ld` and `program.ld`, beside this crate's manifest.
#![forbid(unsafe_code)]

pub mod images;
pub mod link;
