//! The process engine: a deprivileged kernel is, to Linux, just a process.
//!
//! The guest's address spaces are sandboxed child processes, one for each page-table root in use; guest
//! memory is one memfd. Nothing in a child is trusted: its guest thread can make no system call but the
//! hand-over, which blocks it until the monitor answers, and its mappings are changed by a second thread
//! that obeys the monitor alone. The threat model is in `docs/process-engine.md`.
//!
//! A tour, outside in: `machine` is made once, `cpu` enters the guest and decodes nothing; `space` has the address
//! spaces that the virtual CPUs share, each a process, a `child`, which `births` makes, `hold` the one that a virtual
//! CPU is in; `script` is how that process locks itself up, `filter` the rules of that; `stub` is the engine's code in
//! it, `area` the engine's memory in it; `context` turns a hand-over into registers and a trap, `fpu` checks its vector
//! state; `spoilt` deals with what a user program may do to it; `mirror` keeps its mappings equal to the guest's page
//! tables, which `lowest` bounds; `kick` stops it.
//!
//! A virtual CPU runs on one thread; only `kick` may be used from others, and from signal handlers. Processes die with
//! the thread that made them. What may not be done here: interpreting an exit, or believing a guest process.

mod area;
mod births;
mod child;
mod context;
mod cpu;
mod filter;
mod fpu;
mod hold;
mod kick;
mod lowest;
mod machine;
mod mirror;
mod probe;
mod script;
mod space;
mod spoilt;
mod stub;
mod sys;
#[cfg(test)]
mod tests;

pub use self::area::GUEST_END as ADDRESSES_END;
pub use self::child::SpawnError;
pub use self::lowest::Lowest;
pub use self::machine::{ProcessEngineError, ProcessMachine};
pub use self::probe::{Features, Unavailable, probe};
