//! The machine: the only part of the kernel that differs between the two builds.
//!
//! [`Machine`] is the contract. `pv` fulfils it by asking a hypervisor, `bare` by driving a PC; [`Current`] is the
//! one that this kernel is built for. For each function the two do the same work for their caller: what one machine
//! needs and the other does not is done in its layer, at that machine's own price, and nothing is left out because a
//! measurement is running. No code outside of this folder knows which machine it is on, and no code in it knows the
//! console, the shell, a workload or a self-test: a layer hands exceptions to the handler that it was given, and
//! leaves typed bytes and timer interrupts in [`interrupts`](crate::interrupts).

mod exception;
mod interface;
mod primitive;

#[cfg(machine = "bare")]
pub mod bare;
#[cfg(machine = "bare")]
pub use bare::Bare as Current;

#[cfg(machine = "pv")]
pub mod pv;
#[cfg(machine = "pv")]
pub use pv::Pv as Current;

#[cfg(not(any(machine = "pv", machine = "bare")))]
compile_error!("a guest is built with --cfg machine=\"pv\" or --cfg machine=\"bare\"");

pub use exception::{Exception, ExceptionHandler};
pub use interface::{Boot, Machine, Shutdown};
pub use primitive::{Did, Primitive};
