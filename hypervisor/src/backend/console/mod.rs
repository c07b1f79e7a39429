//! What a guest's second console is connected to on the host.
//!
//! [`backend`] is the interface; the other files implement it.

pub mod backend;
pub mod file;
pub mod loopback;
pub mod pty;
pub mod stdio;
pub mod unix;
