//! The build-time half of the guest SDK.
//!
//! Two users, two halves:
//!
//! * [`link`] is for a kernel's own `build.rs`: it hands the linker the kernel's link script, so that a
//!   kernel builds for plain `x86_64-unknown-linux-gnu` with stable Rust and no further target.
//! * [`images`] is for a program that carries kernels inside it (the `paravane` program, the system tests):
//!   it builds them from its `build.rs` with the same Cargo, lock file and compiler.
//!
//! Nothing here may depend on the SDK itself: it runs on the build machine, before any of it is compiled.
#![forbid(unsafe_code)]

pub mod images;
pub mod link;
