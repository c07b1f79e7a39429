//! Exceptions, which the hypervisor passes on.

use core::sync::atomic::{AtomicPtr, Ordering};

use paravane_guest::trap::{self, TrapFrame};

const PAGE_FAULT: u8 = 14;

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

// ANCHOR: handle
/// Has a handler called at each page fault.
pub fn handle_page_faults(handler: fn(u64)) {
    HANDLER.store(handler as *mut (), Ordering::Relaxed);
    trap::install().expect("the hypervisor takes handlers of exceptions");
    trap::set_handler(PAGE_FAULT, Some(page_fault));
}

fn page_fault(frame: &mut TrapFrame) {
    // SAFETY: `handle_page_faults` stored a function there.
    let handler = unsafe { core::mem::transmute::<*mut (), fn(u64)>(HANDLER.load(Ordering::Relaxed)) };
    handler(frame.fault_address());
}
// ANCHOR_END: handle
