//! Fixtures of the unit tests, shared by several rooms. Nothing here is in the program.

pub mod compare;
pub mod disk;
pub mod elf;
pub mod engine;
pub mod pv;
pub mod qcow2;
pub mod skip;
pub mod virtio;
