//! The architecture: what the Intel SDM and AMD's manual say, each fact once.
//!
//! Registers, control bits, exceptions, CPUID and the walk of page tables, as plain data and functions of it. What may
//! not be done here: knowing a guest, a domain or an engine.

#![forbid(unsafe_code)]

pub mod control;
pub mod exception;
pub mod guest_cpuid;
pub mod registers;
pub mod walk;
