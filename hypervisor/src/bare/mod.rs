//! Trap and emulate: a bare kernel, which believes that it runs at CPL 0 of a small PC, on CPL 3.
//!
//! [`BareMachine`] is everything that such a kernel owns: the virtual CPU's privileged state, the shadow of
//! its page tables, and its PC. The monitor enters the guest, hands each exit to
//! [`BareMachine::handle_exit`], and asks [`BareMachine::deliver_pending`] for an interrupt before it enters
//! again. What an instruction does is in [`crate::exec`]; here is what an exit means:
//!
//! | exit | what happens | where |
//! | --- | --- | --- |
//! | #GP, #UD, #NP, #SS on a privileged instruction | executed on the virtual CPU | `exit.rs` |
//! | #PF that the guest's own tables explain | delivered to it | `fault.rs` |
//! | #PF that only the shadow explains | filled, or a page-table store emulated | `fault.rs` |
//! | SYSCALL | the virtual CPU's own SYSCALL | `exit.rs` |
//! | any other exception | delivered through the guest's IDT | `exit.rs` |
//!
//! Sensitive instructions that do not trap at CPL 3 (POPF, PUSHF, SGDT, SMSW, STR, LAR, MOV from CS ...) show
//! the host's state or do nothing. Nothing here can change that: a bare kernel must not use them, and
//! `paravane audit` finds the kernels that do. For the same reason its user selectors must not be
//! ones that the engine's own GDT allows at CPL 3 (0x23, 0x2b, 0x33): an IRETQ to those would not trap.
//!
//! Everything here runs on the thread of the vCPU, except that devices raise their interrupt lines from threads of
//! their own; nothing is called from a signal handler. What may not be done here: naming a particular engine,
//! allocating or logging on an exit (unless the guest ends), trusting a value of the guest.

#![forbid(unsafe_code)]

mod bus;
mod cause;
mod death;
mod exit;
mod fault;
mod handler;
mod history;
mod interpreted;
mod machine;
mod outcome;
pub mod platform;
#[cfg(test)]
mod tests;

pub use interpreted::{InterpretedMachine, Stopped};
pub use machine::{BareBoot, BareMachine, StartError};
pub use outcome::{BareExit, BareOutcome, halted_for_ever, outcome_of};
