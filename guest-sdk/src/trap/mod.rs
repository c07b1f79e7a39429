//! Exceptions: what a handler is given, and how handlers are registered.
//!
//! Every handler is entered with events masked, on the stack that was in use, with all registers and the
//! vector state saved. An exception without a handler is a panic that says where it happened. A kernel that
//! never calls [`install`] dies of its first exception instead; the hypervisor then says where.

mod entry;

use core::cell::UnsafeCell;

use paravane_abi::Errno;
use paravane_abi::segment::FLAT_KERNEL_CS;
use paravane_abi::trap::{
    FRAME_CS_UPCALL_MASK_SHIFT, TI_IF, TRAP_INT3, TRAP_OVERFLOW, TRAP_PAGE_FAULT, TrapInfo,
};

use crate::event;
use crate::hypercall::trap::set_trap_table;
use crate::shared::SHARED;

pub(crate) use entry::{event_entry, failsafe_entry};

/// Exceptions that the architecture defines.
pub const EXCEPTIONS: usize = 32;

/// The `vector` of a frame that was pushed for an event upcall.
pub(crate) const EVENT_VECTOR: u64 = 0x100;
/// The `vector` of a frame that was pushed for the failsafe callback.
const FAILSAFE_VECTOR: u64 = 0x101;

/// The interrupted state. What a handler writes here is what the interrupted code goes on with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// The exception's vector.
    pub vector: u64,
    /// Its error code, or 0.
    pub error_code: u64,
    pub rip: u64,
    /// The code selector; above it the upcall mask, see [`TrapFrame::events_were_masked`].
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl TrapFrame {
    /// Whether user mode was interrupted, not the kernel.
    pub const fn from_user(&self) -> bool {
        self.cs & 3 == 3
    }

    /// Whether events were masked when this happened; they are so again afterwards.
    pub const fn events_were_masked(&self) -> bool {
        (self.cs >> FRAME_CS_UPCALL_MASK_SHIFT) & 0xff != 0
    }

    /// The address of a page fault. Valid in its handler until the next page fault.
    pub fn fault_address(&self) -> u64 {
        SHARED.fault_address().load(core::sync::atomic::Ordering::Relaxed)
    }
}

/// Handles an exception; returning resumes what was interrupted.
pub type Handler = fn(&mut TrapFrame);

/// Handlers by vector.
struct Handlers(UnsafeCell<[Option<Handler>; EXCEPTIONS]>);

// SAFETY: each entry is one word, read and written by volatile accesses of this file only.
unsafe impl Sync for Handlers {}

static HANDLERS: Handlers = Handlers(UnsafeCell::new([None; EXCEPTIONS]));

impl Handlers {
    fn slot(&self, vector: u8) -> Option<*mut Option<Handler>> {
        let index = usize::from(vector);
        // SAFETY: in bounds by the test.
        (index < EXCEPTIONS).then(|| unsafe { self.0.get().cast::<Option<Handler>>().add(index) })
    }
}

/// Sets the handler of an exception; `None` makes it a panic again. False for a vector that is no exception's.
pub fn set_handler(vector: u8, handler: Option<Handler>) -> bool {
    let Some(slot) = HANDLERS.slot(vector) else { return false };
    // SAFETY: a slot of the table, written in one access.
    unsafe { slot.write_volatile(handler) };
    true
}

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

/// Called by the entry code with the frame that it completed.
extern "C" fn dispatch(frame: &mut TrapFrame) {
    match frame.vector {
        EVENT_VECTOR => event::dispatch(),
        FAILSAFE_VECTOR => panic!("the hypervisor cannot restore the segments of {frame:x?}"),
        vector => {
            let handler = u8::try_from(vector).ok().and_then(|v| HANDLERS.slot(v));
            // SAFETY: a slot of the table, read in one access.
            match handler.and_then(|slot| unsafe { slot.read_volatile() }) {
                Some(handler) => handler(frame),
                None => unhandled(frame),
            }
        }
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
