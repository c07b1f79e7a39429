//! Exceptions: the interrupted state that a handler gets, and how handlers are registered.
//!
//! Every handler is entered with events masked, on the stack that was in use, with all registers and the vector state
//! saved. An exception without a handler is a panic that names the address. In a kernel that never calls [`install`]
//! the first exception ends the domain; the hypervisor then reports the address.

mod entry;
mod frame;
mod handlers;

use paravane_abi::Errno;
use paravane_abi::segment::FLAT_KERNEL_CS;
use paravane_abi::trap::{TI_IF, TRAP_INT3, TRAP_OVERFLOW, TrapInfo};

use crate::hypercall::trap::set_trap_table;

pub(crate) use entry::{event_entry, failsafe_entry, syscall_entry};
pub use frame::TrapFrame;
pub(crate) use frame::{EVENT_VECTOR, FAILSAFE_VECTOR};
pub(crate) use handlers::set_upcall_handler;
pub use handlers::{EXCEPTIONS, Handler, set_handler};

/// The address of the last page fault, as [`TrapFrame::fault_address`] says it, for kernels with entry code of their
/// own.
pub fn fault_address() -> u64 {
    TrapFrame::default().fault_address()
}

/// Registers an entry point for every exception.
///
/// # Errors
/// What the hypervisor answers.
pub fn install() -> Result<(), Errno> {
    // SAFETY: the addresses are entry points of `entry`; they are fewer than `EXCEPTIONS`, so that the last entry is
    // empty.
    unsafe { set_trap_table(&table()) }
}

/// The entry point of every exception, and an empty entry at the end.
pub(crate) fn table() -> [TrapInfo; EXCEPTIONS] {
    let mut table = [TrapInfo::default(); EXCEPTIONS];
    let entries = entry::exceptions();
    for (info, (vector, address)) in table.iter_mut().zip(entries) {
        let dpl = if matches!(vector, TRAP_INT3 | TRAP_OVERFLOW) { 3 } else { 0 };
        *info = TrapInfo { vector, flags: dpl | TI_IF, cs: FLAT_KERNEL_CS, address, ..TrapInfo::default() };
    }
    table
}
