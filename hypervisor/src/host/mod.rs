//! Linux, behind safe signatures: threads, limits, notices, and what stands behind a guest's devices.
//!
//! Beside the engines this is the only room that makes system calls. What may not be done here: knowing a guest, a
//! domain or an engine.

pub mod available;
pub mod busy_poll;
pub mod console;
pub mod disk;
pub mod limit;
pub mod net;
pub mod notice;
pub mod threads;
pub mod vsock;
pub mod zeroed;
