//! Guests' page tables: direct paging for paravirtual guests, and the walk that every technique shares.
//!
//! A table frame is touched through [`crate::memory::MachineMemory`] only, and every entry that changes is
//! told to [`crate::engine::Paging`]. What may not be done here: knowing a hypercall's calling convention,
//! or which engine runs.

pub mod direct;
pub mod shadow;
pub mod walk;
