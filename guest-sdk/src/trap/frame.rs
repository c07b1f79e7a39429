//! The frame that the entry code completes: the interrupted state.
#![forbid(unsafe_code)]

use paravane_abi::trap::FRAME_CS_UPCALL_MASK_SHIFT;

use crate::shared::SHARED;

/// The `vector` of a frame that was pushed for an event upcall.
pub(crate) const EVENT_VECTOR: u64 = 0x100;
/// The `vector` of a frame that was pushed for the failsafe callback.
pub(crate) const FAILSAFE_VECTOR: u64 = 0x101;

/// The interrupted state. The interrupted code continues with the values that a handler leaves here.
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
    /// Whether user mode was interrupted rather than the kernel.
    pub const fn from_user(&self) -> bool {
        self.cs & 3 == 3
    }

    /// Whether events were masked at the interruption; the return restores that.
    pub const fn events_were_masked(&self) -> bool {
        (self.cs >> FRAME_CS_UPCALL_MASK_SHIFT) & 0xff != 0
    }

    /// The address of a page fault. Valid in its handler until the next page fault.
    pub fn fault_address(&self) -> u64 {
        SHARED.fault_address().load(core::sync::atomic::Ordering::Relaxed)
    }
}
