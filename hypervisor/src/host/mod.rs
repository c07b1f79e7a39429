//! Linux, behind safe signatures: threads, programs, limits, notices, polling, the host's processor.
//!
//! Each function runs on the thread that calls it, and any thread may call it. Only those whose documentation says so
//! are async-signal-safe. What may not be done here: knowing a guest, a domain, an engine or a device.

pub mod busy_poll;
pub mod code_page;
pub mod host_cpuid;
pub mod limit;
pub mod notice;
pub mod poll;
pub mod program;
pub mod random;
pub mod run_delay;
pub mod socket;
pub mod threads;
pub mod zeroed;
