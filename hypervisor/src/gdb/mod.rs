//! The debugger's side of a run: gdb's remote protocol, and what it makes a domain do.
//!
//! * [`address`] and [`connection`] are where gdb connects to, and the bytes from there.
//! * [`server`] is the thread that answers; [`target`] is what gdb's requests mean here, [`monitor`] what its user's
//!   own commands mean, [`files`] the kernel's file for a gdb that was started without one.
//! * [`session`] is all that this thread and those of the virtual CPUs share.
//! * [`debugged`] stands between a virtual CPU's loop and its runner: it makes the virtual CPU stand still, step, and
//!   notice a breakpoint. A run without a debugger has none.
//! * [`breakpoints`] keeps which bytes of the guest's memory are INT3s of ours, [`hardware`] what is in debug
//!   registers, [`memory`] shows memory without them, [`registers`] has the registers as gdb numbers them.
//!
//! Who connects is trusted with the guest, and with nothing else: no packet makes the host panic, write outside the
//! guest's memory, or change a page table behind the checks.
//!
//! What may not be done here: knowing a technique or an engine. What a technique does for a debugger is
//! [`Inspect`](crate::monitor::inspect::Inspect).

#![forbid(unsafe_code)]

mod address;
mod breakpoints;
mod connection;
pub mod debugged;
mod files;
mod hardware;
mod memory;
mod monitor;
mod registers;
mod server;
mod session;
mod step;
mod target;

pub use address::{Address, BadAddress};
pub use debugged::Debugged;
pub use server::{Answering, Debugger, ListenError};
pub use session::Session;
