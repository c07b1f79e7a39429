//! What a network interface is connected to on the host.
//!
//! [`backend`] is the interface; `tap`, `user`, `unix` and `peer` implement it.

pub mod backend;
pub mod header;
pub mod mac;
pub mod peer;
pub mod scatter_list;
pub mod stream;
pub mod tap;
pub mod unix;
pub mod user;
