//! What a network interface is connected to on the host.

pub mod backend;
pub mod header;
pub mod peer;
pub mod pieces;
pub mod stream;
pub mod tap;
pub mod unix;
pub mod user;
