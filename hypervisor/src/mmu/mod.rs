//! Guests' page tables.
//!
//! * [`direct`]: a paravirtual guest's own tables, which translate as they are because every change is validated.
//! * [`shadow`]: what a bare guest's tables mean, kept in tables that the guest does not see.
//! * [`log`], [`space`]: the domain's log of table writes for all virtual CPUs, and the address space of one.
//!
//! All of it runs on a vCPU's thread; nothing is signal-safe.
//!
//! A table frame is touched through [`crate::machine::memory::MachineMemory`] only, and every entry that changes is
//! noted in the domain's [`log::TableLog`]. What may not be done here: knowing a hypercall's calling convention,
//! or which engine runs.

#![forbid(unsafe_code)]

pub mod direct;
pub mod log;
pub mod shadow;
pub mod space;
