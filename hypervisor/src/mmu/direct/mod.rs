//! Direct paging: the guest owns its page tables, and every change to them is validated.
//!
//! The guest has its tables mapped read-only, and changes them by hypercalls. After every operation of any guest, these
//! invariants hold:
//!
//! 1. A frame that is a page table or holds descriptors is mapped writable nowhere, not even by a translation that a
//!    CPU may still have cached: a frame changes its type only when no type reference is left. One CPU is flushed
//!    before it runs again; of several, all must have been flushed before the change (decision 26).
//! 2. A present entry names a frame of the guest (or one of the few that the hypervisor shows it) and, above L1, a
//!    validated table of the level right below. So there are no superpages, and no linear (recursive) page tables: a
//!    table that links itself or its like is refused with EINVAL, as by a Xen built without them.
//! 3. Slots 256 to 271 of every L4 table hold the hypervisor's entries.
//! 4. Every frame's two counts (see [`frame`]) match the tables, pins, roots and descriptor tables exactly.
//!
//! The work of one operation is bounded: validating or taking down a table reads its 512 entries, once, and an
//! operation that would do so more than [`BUDGET`] entries long stops with [`Stop::Restart`]. Its progress is kept as
//! references to the tables that are done, which bounds it all by the guest's own memory.
//!
//! One operation at a time: `&mut self` is the lock. It is let go between the parts of a restarted operation, when
//! those of other vCPUs come in between: nothing half-validated is left for them to find, and what is kept for the
//! restart has nobody refused ([`work`]).
//!
//! Code here may not store to a table without counting, or treat some guests as more trustworthy than others. Semantics
//! and errors: public/xen.h and public/errno.h; comments in the code name what is left out.

mod entry;
mod ext;
pub mod frame;
mod granted;
mod obstacle;
mod ownership;
mod saved;
mod segdesc;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod update;
mod vcpu_tables;
mod work;

pub use entry::GUEST_KERNEL;
pub use granted::{Granted, Place};
pub use obstacle::{Obstacle, Reference};
pub use state::{BUDGET, DirectPaging, RESERVED_ENTRIES, Stop};
pub use vcpu_tables::{GDT_FRAMES, VcpuTables};
