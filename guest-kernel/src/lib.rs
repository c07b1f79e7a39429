//! The reference guest kernel: one kernel, two machines.
//!
//! A small single-threaded kernel, made to be read, used and measured. All of it is written once, against the
//! contract in `machine`. Built with `--cfg machine="pv"` it runs on a hypervisor's interface; built with
//! `--cfg machine="bare"` it drives a PC and knows of no hypervisor.
//!
//! A start goes through four places: the machine layer's entry code, connected to the kernel in `main.rs`, describes
//! what the loader passed (`machine::Boot`); `boot::start` prints the banner, takes over memory, installs the
//! handlers of exceptions and interrupts; `boot::dispatch` runs the task that the command line names: the shell, a
//! workload, the network services, or a self-test; and the machine is shut down.
//!
//! Without `--cfg guest` only the modules exist that need no machine, and can be tested on the host. Names on this
//! page that are not links belong to the others.
//!
//! # Principles
//!
//! 1. **No code above `machine` knows which machine it is on.** Then a comparison compares the machines and nothing
//!    else. A layer does the same work for its caller at its machine's own price.
//! 2. **Dependencies point downwards** in the map below: a module uses modules further down only. A test checks it.
//!    Lower code calls upper code in one way: exceptions go to the handler that `boot` registered.
//! 3. **A workload checks its own result**, outside the measured part, and reports it in one line.
//! 4. **Nothing is set up before it is needed.** A device is looked for when a command or the command line needs it;
//!    the first line is printed before memory is looked at.
//! 5. **Existing crates are used where they fit**: virtio rings, TCP/IP, ext4 and the heap. The code here is what a
//!    kernel has to add.
//!
//! # Map, from top to bottom
//!
//! | Layer | Modules |
//! | --- | --- |
//! | Start, choice of the task, panic | `boot` |
//! | An image of its own, which shows why the bare machine avoids some instructions | `fidelity` |
//! | The tasks | [`shell`], `workload` (what `paravane compare` runs), `selftest` (what system tests ask for) |
//! | Programs in user mode | [`process`] |
//! | Services on devices | `network` (TCP/IP), `vsock` (sockets to the host), `files` (ext4) |
//! | Services of the kernel | `exception`, `time`, `console` |
//! | Virtio drivers, the same for both machines | `device` |
//! | The kernel's state | `kernel` |
//! | The two machines | `machine`, with `machine::pv` and `machine::bare` |
//! | Frames, address spaces, the heap | [`memory`] |
//! | State shared with interrupt handlers | [`interrupts`] |
//! | Logic that needs no machine | [`cmdline`], [`line_editor`], [`timers`], [`rate`], [`pattern`] |
//! | Statics of a machine with one processor | [`single`] |
//!
//! Where something new goes: a driver in `device`, a shell command in [`shell::command`] and `shell::session`, a
//! measured workload in `workload`, a test that a guest makes of its machine in `selftest`, a privileged operation in
//! both layers of `machine`.
#![cfg_attr(not(test), no_std)]

extern crate alloc;
// The SDK has the functions that compiled Rust expects of a runtime (`memcpy` and the like), for both machines.
#[cfg(guest)]
extern crate paravane_guest as _;

pub mod cmdline;
pub mod interrupts;
pub mod line_editor;
pub mod memory;
pub mod pattern;
pub mod process;
pub mod rate;
pub mod shell;
pub mod single;
#[cfg(test)]
mod tests;
pub mod timers;

#[cfg(guest)]
pub mod boot;
#[cfg(guest)]
pub mod console;
#[cfg(guest)]
pub mod device;
#[cfg(guest)]
pub mod exception;
#[cfg(all(guest, machine = "bare"))]
pub mod fidelity;
#[cfg(guest)]
pub mod files;
#[cfg(guest)]
pub mod kernel;
#[cfg(guest)]
pub mod machine;
#[cfg(guest)]
pub mod network;
#[cfg(guest)]
pub mod selftest;
#[cfg(guest)]
pub mod time;
#[cfg(guest)]
pub mod vsock;
#[cfg(guest)]
pub mod workload;
