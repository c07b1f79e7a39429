//! What a virtio console is connected to on the host.

pub mod backend;
pub mod file;
pub mod loopback;
pub mod pty;
pub mod stdio;
pub mod unix;
