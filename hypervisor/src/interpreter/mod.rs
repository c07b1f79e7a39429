//! Interpretation: a processor in software, which executes every instruction of a guest itself.
//!
//! [`Interpreter`] fetches, decodes and executes, with the operations of [`crate::exec`] for privileged instructions
//! and its arithmetic. What it executes on is a [`Machine`]: it says where a linear address leads, and has the devices.
//! Decoded instructions are kept by guest-physical page, and executed in runs of at most 64.
//!
//! | what | where |
//! | --- | --- |
//! | runs, interrupts, faults, single-stepping | `run.rs` |
//! | every instruction in its general form | `general/` |
//! | often used instructions, specialised | `fast/`, chosen by `lower.rs` |
//! | decoded code, and when it is dropped | `cache.rs`, `code_map.rs` |
//! | translations of addresses | `tlb.rs`, `reach.rs` |
//! | which features CPUID shows | `presence.rs` |
//!
//! All of it runs on the thread of the vCPU. What may not be done here: knowing an engine, a domain, a PC or the
//! ledger; trusting anything that the guest says; believing memory to stay as it was, because devices write to it.

#![forbid(unsafe_code)]

mod cache;
mod code_map;
mod core;
mod fast;
mod general;
mod lower;
mod op;
mod outside;
mod presence;
mod reach;
mod run;
#[cfg(test)]
mod tests;
mod tlb;
mod vector;

pub(crate) use outside::{Machine, Place};
pub(crate) use presence::shown;
pub(crate) use run::{Counts, Failure, Interpreter, Left};
