//! Guests' page tables.
//!
//! * [`direct`]: a paravirtual guest's own tables, which translate as they are because every change is validated.
//! * [`shadow`]: what a bare guest's tables mean, kept in tables that the guest does not see.
//! * [`log`], [`space`]: what the engines of all virtual CPUs must hear of, and what belongs to one of them.
//!
//! A table frame is touched through [`crate::machine::memory::MachineMemory`] only, and every entry that changes is
//! noted in the domain's [`log::TableLog`]. What may not be done here: knowing a hypercall's calling convention,
//! or which engine runs.

#![forbid(unsafe_code)]

pub mod direct;
pub mod log;
pub mod shadow;
pub mod space;
