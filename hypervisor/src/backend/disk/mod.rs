//! What a disk's blocks are on the host: image formats, and the ways to read and write them.

pub mod behind;
pub mod buffers;
pub mod direct;
pub mod errors;
pub mod image;
pub mod pool;
pub mod qcow2;
pub mod transfer;
pub mod uring;
