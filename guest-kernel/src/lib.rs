//! The reference guest kernel: one kernel, two machines.
//!
//! A small kernel of one thread, made to be read, used and measured. All of it is written once, against the
//! boundary in `machine`; built with `--cfg machine="pv"` it runs on a hypervisor's interface, built with
//! `--cfg machine="bare"` it drives a PC and knows of no hypervisor.
//!
//! The road through it: a machine layer's entry code fills in a `Boot` and calls `kernel::start`, which
//! prints the banner, takes possession of memory, and goes where the command line says: to the shell, to a
//! workload, to the services of its network, or to a system test.
//!
//! Without `--cfg guest` only the parts that need no machine exist, and can be tested on the host. The names in this page
//! that are no links are those of the rest.
//!
//! # Principles
//!
//! 1. **Above `machine` no code knows which machine it is on**: what is compared is then the machines and nothing else. A
//!    layer does the same work for its caller at its machine's own price.
//! 2. **A workload checks its own result**, outside what is measured, and says so in one line.
//! 3. **Nothing is set up before it is asked for.** A device is looked for when a command or the command line needs it; the first line is
//!    printed before memory is looked at.
//! 4. **Other people's code where there is some**: virtio rings, TCP/IP, ext4 and the heap are crates. What is here is what a kernel
//!    has to add.
//!
//! # Map
//!
//! | Concern | Modules |
//! | --- | --- |
//! | The two machines | `machine`, with `machine::pv` and `machine::bare` |
//! | Start, end, exceptions, time | `kernel`, `exception`, `time`, [`timers`], [`rate`] |
//! | Memory: frames, address spaces, the heap | [`frames`], [`paging`], `memory`, `heap` |
//! | What it was told, and the shell | [`command`], [`mod@line`], `console`, `shell` |
//! | Virtio devices, one driver for both machines | `device` |
//! | What is done with them | `files`, `network`, `sockets`; [`pattern`] for tests of disks |
//! | What `paravane compare` runs, and what system tests do | `workload`, `selftest` |
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
pub mod rate;
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
