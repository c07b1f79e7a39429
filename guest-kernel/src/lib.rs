//! The reference guest kernel: one kernel, two machines.
//!
//! A small kernel of one address space and one thread, made to be read, used and measured. All of it is
//! written once, against the boundary in [`machine`]; built with `--cfg machine="pv"` it runs on a
//! hypervisor's interface, built with `--cfg machine="bare"` it drives a PC and knows of no hypervisor.
//!
//! The road through it: a machine layer's entry code fills in a `Boot` and calls `kernel::start`, which
//! prints the banner, takes possession of memory, and goes where the command line says: to the shell, to a
//! workload, or to a system test.
//!
//! Without `--cfg guest` only the parts that need no machine exist, and can be tested on the host.
#![cfg_attr(not(test), no_std)]

#[cfg(guest)]
extern crate alloc;
// What compiled Rust expects of a runtime (`memcpy` and the like) is the SDK's, on either machine.
#[cfg(guest)]
extern crate paravane_guest as _;

pub mod command;
pub mod frames;
pub mod line;
pub mod paging;
pub mod pattern;
pub mod timers;

#[cfg(guest)]
pub mod console;
#[cfg(guest)]
pub mod device;
#[cfg(guest)]
pub mod exception;
#[cfg(guest)]
pub mod files;
#[cfg(guest)]
pub mod heap;
#[cfg(guest)]
pub mod kernel;
#[cfg(guest)]
pub mod machine;
#[cfg(guest)]
pub mod memory;
#[cfg(guest)]
pub mod network;
#[cfg(guest)]
pub mod selftest;
#[cfg(guest)]
pub mod shell;
#[cfg(guest)]
pub mod single;
#[cfg(guest)]
pub mod sockets;
#[cfg(guest)]
pub mod time;
#[cfg(guest)]
pub mod workload;
