//! Programs for the reference kernel's user mode, and what they need: one static file that runs on Linux, too.
//!
//! The file is all programs: its first argument's last part says which (`programs::main`), as BusyBox does it. System
//! calls are Linux's for x86-64; only those are used that the reference kernel has.
#![no_std]
#![allow(dropping_copy_types)] // `drop` says that it does not matter what a call answers

#[cfg(guest)]
pub mod bench;
#[cfg(guest)]
pub mod contract;
#[cfg(guest)]
pub mod print;
#[cfg(guest)]
pub mod programs;
#[cfg(guest)]
#[path = "../../../guest-sdk/src/runtime.rs"]
mod runtime;
#[cfg(guest)]
pub mod shell;
#[cfg(guest)]
pub mod start;
#[cfg(guest)]
pub mod sys;
