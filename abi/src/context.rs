//! The whole state of a vCPU, as `VCPUOP_INITIALISE` takes it.
//!
//! Sources: public/arch-x86/xen.h, public/arch-x86/xen-x86_64.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::trap::{TRAP_VECTORS, TrapInfo};

/// Bytes of FPU state, in the format of FXSAVE.
pub const FPU_CONTEXT_SIZE: usize = 512;
/// Frames that [`VcpuGuestContext::gdt_frames`] has room for; the last two belong to the hypervisor.
pub const GDT_FRAME_SLOTS: usize = 16;

/// In [`VcpuGuestContext::flags`]: `fpu_ctxt` is valid.
pub const VGCF_I387_VALID: u64 = 1 << 0;
/// In [`VcpuGuestContext::flags`]: start in the guest kernel, not in user mode.
pub const VGCF_IN_KERNEL: u64 = 1 << 2;
/// In [`VcpuGuestContext::flags`]: the failsafe entry masks events.
pub const VGCF_FAILSAFE_DISABLES_EVENTS: u64 = 1 << 3;
/// In [`VcpuGuestContext::flags`]: the system-call entry masks events.
pub const VGCF_SYSCALL_DISABLES_EVENTS: u64 = 1 << 4;
/// In [`VcpuGuestContext::flags`]: the vCPU is up.
pub const VGCF_ONLINE: u64 = 1 << 5;

/// General registers and selectors.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "a register's name says what it is")]
pub struct CpuUserRegs {
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
    /// Used by the hypervisor only.
    pub error_code: u32,
    /// Used by the hypervisor only.
    pub entry_vector: u32,
    pub rip: u64,
    pub cs: u16,
    pub _pad0: u16,
    /// The saved upcall mask: the interrupt flag inverted.
    pub saved_upcall_mask: u8,
    pub _pad1: [u8; 3],
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u16,
    pub _pad2: [u16; 3],
    pub es: u16,
    pub _pad3: [u16; 3],
    pub ds: u16,
    pub _pad4: [u16; 3],
    pub fs: u16,
    pub _pad5: [u16; 3],
    pub gs: u16,
    pub _pad6: [u16; 3],
}

layout!(CpuUserRegs: 200 {
    r15 @ 0, r14 @ 8, r13 @ 16, r12 @ 24, rbp @ 32, rbx @ 40, r11 @ 48, r10 @ 56, r9 @ 64, r8 @ 72, rax @ 80,
    rcx @ 88, rdx @ 96, rsi @ 104, rdi @ 112, error_code @ 120, entry_vector @ 124, rip @ 128, cs @ 136,
    saved_upcall_mask @ 140, rflags @ 144, rsp @ 152, ss @ 160, es @ 168, ds @ 176, fs @ 184, gs @ 192,
});

/// Argument of `VCPUOP_INITIALISE`. All IN.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuGuestContext {
    /// FPU state, in the format of FXSAVE.
    pub fpu_ctxt: [u8; FPU_CONTEXT_SIZE],
    /// `VGCF_*`.
    pub flags: u64,
    /// Registers.
    pub user_regs: CpuUserRegs,
    /// Trap handlers, by vector.
    pub trap_ctxt: [TrapInfo; TRAP_VECTORS],
    /// Virtual address of the LDT.
    pub ldt_base: u64,
    /// Descriptors in it.
    pub ldt_ents: u64,
    /// Machine frames of the GDT.
    pub gdt_frames: [u64; GDT_FRAME_SLOTS],
    /// Descriptors in it.
    pub gdt_ents: u64,
    /// Selector of the kernel's stack.
    pub kernel_ss: u64,
    /// Pointer of the kernel's stack.
    pub kernel_sp: u64,
    /// Control registers by number; 1 holds the address space of user mode, in the form of CR3.
    pub ctrlreg: [u64; 8],
    /// Debug registers by number.
    pub debugreg: [u64; 8],
    /// Virtual address of the event entry.
    pub event_callback_eip: u64,
    /// Virtual address of the failsafe entry.
    pub failsafe_callback_eip: u64,
    /// Virtual address of the system-call entry.
    pub syscall_callback_eip: u64,
    /// A bit for each assistance that is enabled: `VMASST_TYPE_*`.
    pub vm_assist: u64,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS in the kernel.
    pub gs_base_kernel: u64,
    /// Base of GS in user mode.
    pub gs_base_user: u64,
}

layout!(VcpuGuestContext: 5168 {
    fpu_ctxt @ 0, flags @ 512, user_regs @ 520, trap_ctxt @ 720, ldt_base @ 4816, ldt_ents @ 4824, gdt_frames @ 4832,
    gdt_ents @ 4960, kernel_ss @ 4968, kernel_sp @ 4976, ctrlreg @ 4984, debugreg @ 5048, event_callback_eip @ 5112,
    failsafe_callback_eip @ 5120, syscall_callback_eip @ 5128, vm_assist @ 5136, fs_base @ 5144,
    gs_base_kernel @ 5152, gs_base_user @ 5160,
});
default_is_zeroed!(VcpuGuestContext);
