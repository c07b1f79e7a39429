//! Guests' page tables.
//!
//! * [`direct`]: a paravirtual guest's own tables, which translate as they are because every change is validated.
//! * [`shadow`]: what a bare guest's tables mean, kept in tables that the guest does not see.
//! * [`walk`]: from a linear address to what a guest's tables say of it; shared by both.
//!
//! A table frame is touched through [`crate::machine::memory::MachineMemory`] only, and every entry that changes is
//! told to [`crate::engine::Paging`]. What may not be done here: knowing a hypercall's calling convention,
//! or which engine runs.

pub mod direct;
pub mod shadow;
