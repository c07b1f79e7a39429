//! Traps: registration of handlers, the frame pushed for them, and their return.
//!
//! The frame pushed on the kernel's stack, from the lowest address: `rcx`, `r11`, the error code for traps that have
//! one, `rip`, `cs` (with the upcall mask as it was, from bit [`FRAME_CS_UPCALL_MASK_SHIFT`] on), `rflags`, `rsp`,
//! `ss`. Sources: public/arch-x86/xen.h, public/arch-x86/xen-x86_64.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Vectors of the virtual IDT.
pub const TRAP_VECTORS: usize = 256;

/// In [`TrapInfo::flags`]: who may enter by a software interrupt: 0 for none, 1 and 2 for the kernel, 3 for user mode
/// too.
pub const TI_DPL_MASK: u8 = 3;
/// In [`TrapInfo::flags`]: the handler is entered with events masked.
pub const TI_IF: u8 = 4;

/// Vector of a divide error (SDM vol. 3, 6.3; the same for those below).
pub const TRAP_DIVIDE_ERROR: u8 = 0;
/// Vector of a debug exception.
pub const TRAP_DEBUG: u8 = 1;
/// Vector of the non-maskable interrupt.
pub const TRAP_NMI: u8 = 2;
/// Vector of a breakpoint.
pub const TRAP_INT3: u8 = 3;
/// Vector of an overflow.
pub const TRAP_OVERFLOW: u8 = 4;
/// Vector of an invalid opcode.
pub const TRAP_INVALID_OP: u8 = 6;
/// Vector of a device that is not available: x87 and vector state, see `fpu_taskswitch`.
pub const TRAP_NO_DEVICE: u8 = 7;
/// Vector of a double fault.
pub const TRAP_DOUBLE_FAULT: u8 = 8;
/// Vector of an invalid TSS.
pub const TRAP_INVALID_TSS: u8 = 10;
/// Vector of a segment that is not present.
pub const TRAP_NO_SEGMENT: u8 = 11;
/// Vector of a stack-segment fault.
pub const TRAP_STACK_ERROR: u8 = 12;
/// Vector of a general-protection fault.
pub const TRAP_GP_FAULT: u8 = 13;
/// Vector of a page fault.
pub const TRAP_PAGE_FAULT: u8 = 14;
/// Vector of an x87 floating-point error.
pub const TRAP_COPRO_ERROR: u8 = 16;
/// Vector of an alignment check.
pub const TRAP_ALIGNMENT_CHECK: u8 = 17;
/// Vector of a machine check.
pub const TRAP_MACHINE_CHECK: u8 = 18;
/// Vector of a SIMD floating-point error.
pub const TRAP_SIMD_ERROR: u8 = 19;

/// Page-fault error code: the entry was present, the access not allowed (SDM vol. 3, 4.7; the same for those below).
pub const PFEC_PRESENT: u32 = 1 << 0;
/// Page-fault error code: a store.
pub const PFEC_WRITE: u32 = 1 << 1;
/// Page-fault error code: the access was made by user mode. A PV kernel runs at CPL 3 too; the hypervisor clears the
/// bit for its faults.
pub const PFEC_USER: u32 = 1 << 2;
/// Page-fault error code: a reserved bit was set in an entry.
pub const PFEC_RESERVED: u32 = 1 << 3;
/// Page-fault error code: an instruction fetch.
pub const PFEC_FETCH: u32 = 1 << 4;

/// One handler of `set_trap_table(list)`; an entry with address 0 ends the list.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrapInfo {
    /// IN: exception or software-interrupt vector.
    pub vector: u8,
    /// IN: [`TI_DPL_MASK`] and [`TI_IF`].
    pub flags: u8,
    /// IN: code selector of the handler; its privilege level is taken as 3.
    pub cs: u16,
    /// Padding.
    pub _pad: u32,
    /// IN: virtual address of the handler; 0 ends the list.
    pub address: u64,
}

layout!(TrapInfo: 16 { vector @ 0, flags @ 1, cs @ 2, address @ 8 });

/// Where the saved upcall mask starts in the `cs` that is pushed for a handler: eight bits.
pub const FRAME_CS_UPCALL_MASK_SHIFT: u32 = 32;

/// In [`IretContext::flags`]: the guest was entered by SYSCALL and may return by SYSRET, which clobbers `rcx` and
/// `r11`, and loads flat selectors in place of `cs` and `ss`.
pub const VGCF_IN_SYSCALL: u64 = 1 << 8;

/// The structure at `rsp` when a guest calls `iret`.
///
/// The privilege level in `cs` selects the target: 0 to 2 is the guest kernel, 3 is user mode. The interrupt flag in
/// `rflags` becomes the upcall mask.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IretContext {
    /// IN: register to restore.
    pub rax: u64,
    /// IN: register to restore.
    pub r11: u64,
    /// IN: register to restore.
    pub rcx: u64,
    /// IN: 0 or [`VGCF_IN_SYSCALL`].
    pub flags: u64,
    /// IN: address to continue at.
    pub rip: u64,
    /// IN: code selector.
    pub cs: u64,
    /// IN: flags to restore.
    pub rflags: u64,
    /// IN: stack pointer.
    pub rsp: u64,
    /// IN: stack selector.
    pub ss: u64,
}

layout!(IretContext: 72 {
    rax @ 0, r11 @ 8, rcx @ 16, flags @ 24, rip @ 32, cs @ 40, rflags @ 48, rsp @ 56, ss @ 64,
});
