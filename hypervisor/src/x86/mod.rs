//! The architecture: what the Intel SDM and AMD's manual say, each fact once.
//!
//! Registers, flags, control bits, MSRs, descriptors, exceptions, CPUID, page walks, decoding and the classification
//! of privileged and sensitive instructions, as plain data and functions of it. Everything here is callable on any
//! thread; nothing here is called from a signal handler. What may not be done here: knowing a guest, a domain or an
//! engine.

#![forbid(unsafe_code)]

pub mod control;
pub mod debug;
pub mod decode;
pub mod descriptor;
pub mod exception;
pub mod guest_cpuid;
pub mod msr;
pub mod registers;
pub mod rflags;
pub mod sensitive;
pub mod virtualization;
pub mod walk;
pub mod xsave;
