//! Guests' page tables.
//!
//! * [`direct`]: a paravirtual guest's own tables. The processor uses them directly, because every change is validated.
//! * [`shadow`]: tables that the guest does not see, derived from those of a bare guest.
//! * [`guest`]: a bare guest's own tables, walked as its processor would.
//! * [`log`], [`space`]: the domain's log of table writes for all virtual CPUs, and the address space of one.
//! * [`crossing`]: how a virtual CPU goes from one address space to another by itself.
//!
//! All of it runs on a vCPU's thread; nothing is signal-safe.
//!
//! Table frames are only accessed through [`crate::machine::memory::MachineMemory`], and every entry that changes is
//! noted in the domain's [`log::TableLog`]. Code here may not depend on the calling convention of hypercalls, or on the
//! engine.

#![forbid(unsafe_code)]

pub mod crossing;
pub mod direct;
pub mod guest;
pub mod log;
pub mod shadow;
pub mod space;
