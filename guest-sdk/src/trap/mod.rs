//! Exceptions: what a handler is given, and how handlers are registered.
//!
//! Every handler is entered with events masked, on the stack that was in use, with all registers and the
//! vector state saved. An exception without a handler is a panic that says where it happened. A kernel that
//! never calls [`install`] dies of its first exception instead; the hypervisor then says where.

mod entry;
mod frame;
mod handlers;

use paravane_abi::Errno;
use paravane_abi::segment::FLAT_KERNEL_CS;
use paravane_abi::trap::{TI_IF, TRAP_INT3, TRAP_OVERFLOW, TrapInfo};

use crate::hypercall::trap::set_trap_table;

pub(crate) use entry::{event_entry, failsafe_entry};
pub use frame::TrapFrame;
pub(crate) use handlers::set_upcall_handler;
pub use handlers::{EXCEPTIONS, Handler, set_handler};

/// Registers an entry point for every exception that a processor raises.
///
/// # Errors
/// What the hypervisor answers.
pub fn install() -> Result<(), Errno> {
    let mut table = [TrapInfo::default(); EXCEPTIONS];
    let entries = entry::exceptions();
    for (info, (vector, address)) in table.iter_mut().zip(entries) {
        let dpl = if matches!(vector, TRAP_INT3 | TRAP_OVERFLOW) { 3 } else { 0 };
        *info = TrapInfo { vector, flags: dpl | TI_IF, cs: FLAT_KERNEL_CS, address, ..TrapInfo::default() };
    }
    // SAFETY: the entries are those of `entry`; fewer than `EXCEPTIONS`, so an empty one comes last.
    unsafe { set_trap_table(&table) }
}
