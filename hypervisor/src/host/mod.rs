//! Linux, behind safe signatures: threads, limits, notices, the processor.
//!
//! Beside the engines this is the only room that makes system calls. What may not be done here: knowing a guest, a
//! domain or an engine.

pub mod busy_poll;
pub mod host_cpuid;
pub mod limit;
pub mod notice;
pub mod poll;
pub mod random;
pub mod socket;
pub mod threads;
pub mod zeroed;
