//! The way to user mode and back: [`enter`] is left by [`left`], to which the entry code of exceptions, events and
//! system calls jumps once it has completed the frame of a program.
//!
//! The kernel's stack for entries from user mode is an [`EntryArea`]: the frame is completed in it, and what is above
//! it leads back to the stack of `enter`'s caller. Events are masked while the stack pointer is in it, so nothing can
//! be pushed there but by a program. Each vCPU has one.

use core::arch::naked_asm;
use core::mem::offset_of;
use core::ptr::null_mut;
use core::sync::atomic::AtomicU8;

use paravane_abi::hypercall::{HYPERCALL_ENTRY_SIZE, IRET};

use crate::hypercall::hypercall_page;
use crate::trap::TrapFrame;

/// The `vector` of a frame that was pushed for a system call.
pub(crate) const SYSCALL_VECTOR: u64 = 0x102;

/// Whether entries from user mode belong to this module: set once, when [`UserMode`](super::UserMode) is installed.
pub(crate) static PROGRAMS: AtomicU8 = AtomicU8::new(0);

/// MXCSR as compiled code expects it.
static KERNEL_MXCSR: u32 = 0x1f80;

/// The stack for entries from user mode, which holds one frame, and what the way back needs.
#[repr(C, align(16))]
#[derive(Debug)]
pub(super) struct EntryArea {
    pub(super) frame: TrapFrame,
    /// The stack pointer of whoever entered user mode. Its address is the stack that the hypervisor is told.
    pub(super) return_sp: u64,
    /// Where the program's vector registers are saved.
    pub(super) vectors: *mut u8,
    /// Which ones XSAVE saves; 0 for FXSAVE.
    pub(super) components: u64,
}

impl EntryArea {
    pub(super) const fn new() -> Self {
        // SAFETY: all zeroes are a frame, which is words only.
        let frame = unsafe { core::mem::zeroed() };
        Self { frame, return_sp: 0, vectors: null_mut(), components: 0 }
    }
}

/// The hypervisor aligns the stack pointer to 16 bytes before it pushes.
const _: () = assert!(
    offset_of!(EntryArea, return_sp) == size_of::<TrapFrame>() && size_of::<TrapFrame>().is_multiple_of(16)
);

/// Enters user mode with the registers in `area`; returns when user mode was left, with those that it had then.
///
/// # Safety
/// Events are masked; the frame's selectors are those of user mode; `vectors` is an area in the form that `components`
/// says; the hypervisor was told the address of `return_sp` as the kernel's stack.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn enter(area: *mut EntryArea) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi + {return_sp}], rsp",
        "mov rsi, [rdi + {vectors}]",
        "mov rax, [rdi + {components}]",
        "xor edx, edx",
        "test rax, rax",
        "jz 2f",
        "xrstor64 [rsi]",
        "jmp 3f",
        "2: fxrstor64 [rsi]",
        "3: mov rsp, rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rax",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        // As after an exception: the page's entry expects flags, rip, ... and pushes rcx, r11, rax itself.
        "add rsp, 8",
        "mov qword ptr [rsp], 0",
        "jmp {page} + {iret}",
        return_sp = const offset_of!(EntryArea, return_sp),
        vectors = const offset_of!(EntryArea, vectors),
        components = const offset_of!(EntryArea, components),
        page = sym hypercall_page,
        iret = const IRET as usize * HYPERCALL_ENTRY_SIZE,
    )
}

/// Where the entry code of everything that interrupts a program ends, with the stack pointer at the frame.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn left() -> ! {
    naked_asm!(
        "mov rdi, rsp",
        "mov rsi, [rdi + {vectors}]",
        "mov rax, [rdi + {components}]",
        "xor edx, edx",
        "test rax, rax",
        "jz 2f",
        "xsave64 [rsi]",
        "jmp 3f",
        "2: fxsave64 [rsi]",
        "3: fninit",
        "ldmxcsr [rip + {mxcsr}]",
        "mov rsp, [rdi + {return_sp}]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        return_sp = const offset_of!(EntryArea, return_sp),
        vectors = const offset_of!(EntryArea, vectors),
        components = const offset_of!(EntryArea, components),
        mxcsr = sym KERNEL_MXCSR,
    )
}
