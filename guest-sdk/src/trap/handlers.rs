//! The table of handlers, and the dispatch from the entry code to it.

use core::cell::UnsafeCell;

use paravane_abi::trap::TRAP_PAGE_FAULT;

use super::frame::{EVENT_VECTOR, FAILSAFE_VECTOR, TrapFrame};

/// Exceptions that the architecture defines.
pub const EXCEPTIONS: usize = 32;

/// Handles an exception. Returning resumes the interrupted code.
pub type Handler = fn(&mut TrapFrame);

/// Where the handler of event upcalls is in the table.
const UPCALL: usize = EXCEPTIONS;

/// Handlers by vector, then the handler of event upcalls.
struct Handlers(UnsafeCell<[Option<Handler>; EXCEPTIONS + 1]>);

// SAFETY: each entry is one word, read and written by volatile accesses in this file only.
unsafe impl Sync for Handlers {}

static HANDLERS: Handlers = Handlers(UnsafeCell::new([None; EXCEPTIONS + 1]));

impl Handlers {
    fn get(&self, index: usize) -> Option<Handler> {
        let slot = self.slot(index)?;
        // SAFETY: an entry of the table, read in one access.
        unsafe { slot.read_volatile() }
    }

    fn set(&self, index: usize, handler: Option<Handler>) {
        if let Some(slot) = self.slot(index) {
            // SAFETY: an entry of the table, written in one access.
            unsafe { slot.write_volatile(handler) };
        }
    }

    fn slot(&self, index: usize) -> Option<*mut Option<Handler>> {
        // SAFETY: in bounds by the test.
        (index <= UPCALL).then(|| unsafe { self.0.get().cast::<Option<Handler>>().add(index) })
    }
}

/// Sets the handler of an exception; `None` makes the exception a panic again. False if `vector` is not an exception's.
pub fn set_handler(vector: u8, handler: Option<Handler>) -> bool {
    let index = usize::from(vector);
    if index < EXCEPTIONS {
        HANDLERS.set(index, handler);
    }
    index < EXCEPTIONS
}

/// Sets the handler of event upcalls.
pub(crate) fn set_upcall_handler(handler: Handler) {
    HANDLERS.set(UPCALL, Some(handler));
}

/// Called by the entry code with the frame that it completed.
pub(super) extern "C" fn dispatch(frame: &mut TrapFrame) {
    let index = match frame.vector {
        EVENT_VECTOR => UPCALL,
        FAILSAFE_VECTOR => panic!("the hypervisor cannot restore the segments of {frame:x?}"),
        vector if vector < EXCEPTIONS as u64 => vector as usize,
        _ => unhandled(frame),
    };
    match HANDLERS.get(index) {
        Some(handler) => handler(frame),
        None => unhandled(frame),
    }
}

fn unhandled(frame: &TrapFrame) -> ! {
    let TrapFrame { vector, error_code, rip, rsp, .. } = frame;
    if *vector == u64::from(TRAP_PAGE_FAULT) {
        let address = frame.fault_address();
        panic!(
            "unhandled page fault at {address:#x}, error code {error_code:#x}, rip {rip:#x}, rsp {rsp:#x}"
        );
    }
    panic!("unhandled exception {vector}, error code {error_code:#x}, rip {rip:#x}, rsp {rsp:#x}");
}
