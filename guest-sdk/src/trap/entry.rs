//! The entry code: from the frame that the hypervisor pushed to [`dispatch`] and back.
//!
//! The hypervisor pushes rcx, r11, an error code for some exceptions, rip, cs, rflags, rsp, ss, below the red zone of
//! the interrupted code (public/arch-x86/xen-x86_64.h; see `paravane_abi::trap`). Once the registers hold rcx and r11
//! again, their two words become the frame's vector and error code.
//!
//! If the kernel was interrupted, the return is an IRETQ without a hypercall: same privilege, same selectors, and the
//! only further state is the upcall mask. Unmasking and returning are two steps, so the code checks between them for
//! an event that arrived meanwhile, and handles it in another turn. An upcall *within* these steps (labels 3 to 8)
//! finds a state that it can save and restore like any other, but it returns by the `iret` hypercall, which unmasks
//! and returns in one step, so that such upcalls do not pile up on the stack. The return to user mode is always by
//! `iret`.
//!
//! The vector state is saved with FXSAVE: handlers may use SSE, and must not use AVX.

use core::arch::naked_asm;
use core::mem::offset_of;

use paravane_abi::hypercall::{HYPERCALL_ENTRY_SIZE, IRET};

use super::frame::{EVENT_VECTOR, FAILSAFE_VECTOR, TrapFrame};
use super::handlers::dispatch;
use crate::hypercall::hypercall_page;
use crate::shared::{SHARED, UPCALL_MASK, UPCALL_PENDING};
use crate::smp::{INFO, SEVERAL};
use crate::user::{PROGRAMS, SYSCALL_VECTOR, left};

/// An entry point: an address, and never called by Rust.
type Entry = unsafe extern "C" fn() -> !;

/// Entry code of an exception without an error code.
#[unsafe(naked)]
unsafe extern "C" fn plain<const VECTOR: u64>() -> ! {
    naked_asm!(
        "mov rcx, [rsp]",
        "mov r11, [rsp + 8]",
        "mov qword ptr [rsp], {vector}",
        "mov qword ptr [rsp + 8], 0",
        "jmp {common}",
        vector = const VECTOR,
        common = sym common,
    )
}

/// Entry code of an exception with an error code.
#[unsafe(naked)]
unsafe extern "C" fn with_error<const VECTOR: u64>() -> ! {
    naked_asm!(
        "pop rcx",
        "mov r11, [rsp]",
        "mov qword ptr [rsp], {vector}",
        "jmp {common}",
        vector = const VECTOR,
        common = sym common,
    )
}

/// Entry code of the failsafe callback: four selectors lie between r11 and rip.
#[unsafe(naked)]
unsafe extern "C" fn failsafe() -> ! {
    naked_asm!(
        "mov rcx, [rsp]",
        "mov r11, [rsp + 8]",
        "add rsp, 32",
        "mov qword ptr [rsp], {vector}",
        "mov qword ptr [rsp + 8], 0",
        "jmp {common}",
        vector = const FAILSAFE_VECTOR,
        common = sym common,
    )
}

#[unsafe(naked)]
unsafe extern "C" fn common() -> ! {
    naked_asm!(
        "cld",
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push rax",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        // What interrupts a program ends `user::UserMode::run`.
        "cmp byte ptr [rip + {programs}], 0",
        "je 9f",
        "test byte ptr [rsp + {cs}], 3",
        "jz 9f",
        "jmp {left}",
        "9:",
        "mov rbx, rsp",
        // The vCPU's part of the shared page: the first one's as long as there is no other.
        "lea r12, [rip + {shared}]",
        "cmp byte ptr [rip + {several}], 0",
        "je 30f",
        "mov r12, gs:[{info}]",
        "30:",
        "sub rsp, 512",
        "and rsp, -16",
        "fxsave64 [rsp]",
        // One turn: handle, then choose the way to return.
        "2:",
        "mov rdi, rbx",
        // A frame record, so that whoever follows RBP comes from the handler to what it interrupted; above it, for
        // debuggers, the stack pointer there, and again to keep the stack aligned.
        "push [rbx + {rsp}]",
        "push [rbx + {rsp}]",
        "push [rbx + {rip}]",
        "push [rbx + {rbp}]",
        "mov rbp, rsp",
        "80: call {dispatch}",
        "81: add rsp, 32",
        "test byte ptr [rbx + {cs}], 3",
        "jnz 6f",
        "lea rax, [rip + 3f]",
        "lea rcx, [rip + 8f]",
        "mov rdx, [rbx + {rip}]",
        "cmp rdx, rax",
        "jb 5f",
        "cmp rdx, rcx",
        "jb 6f",
        "5:",
        "cmp byte ptr [rbx + {cs} + 4], 0",
        "jne 4f",
        // Events were not masked: unmask, and take another turn if one arrived before that.
        "mov byte ptr [r12 + {mask}], 0",
        "3:",
        "cmp byte ptr [r12 + {pending}], 0",
        "je 7f",
        "mov byte ptr [r12 + {mask}], 1",
        "mov qword ptr [rbx + {vector}], {event}",
        "jmp 2b",
        "4:",
        "mov byte ptr [r12 + {mask}], 1",
        // Return to the kernel, with the selectors that it runs on.
        "7:",
        "fxrstor64 [rsp]",
        "mov rsp, rbx",
        "22: mov eax, cs",
        "mov [rsp + {cs}], rax",
        "23: mov eax, ss",
        "mov [rsp + {ss}], rax",
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
        "add rsp, 16",
        "24: iretq",
        "8:",
        // Return by hypercall: its entry expects flags, rip, ... on the stack and pushes rcx, r11, rax itself.
        "6:",
        "fxrstor64 [rsp]",
        "mov rsp, rbx",
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
        "add rsp, 8",
        "mov qword ptr [rsp], 0",
        "jmp {page} + {iret}",
        // For debuggers, where the handler returns to: what was interrupted is at [RBP + 8], its RBP at [RBP], and its
        // stack pointer, which is the CFA, at [RBP + 16] (DWARF 4, 6.4; "S": the one above is not at a call).
        ".pushsection .debug_frame, \"\", @progbits",
        "90: .long 92f - 91f",
        "91: .long 0xffffffff",
        ".byte 1, 'S', 0, 1, 0x78, 16",
        ".balign 8, 0",
        "92: .long 94f - 93f",
        "93: .long 90b",
        ".quad 80b, 81b + 4 - 80b",
        ".byte 0x0f, 3, 0x76, 16, 0x06, 0x10, 16, 2, 0x76, 8, 0x10, 6, 2, 0x76, 0",
        ".balign 8, 0",
        "94:",
        ".popsection",
        // For `paravane audit`: sensitive instructions that are intended here.
        ".pushsection .paravane.audit, \"\", @progbits",
        ".quad 22b",
        ".asciz \"the selector that this code runs on is the one that the IRETQ below needs\"",
        ".quad 23b",
        ".asciz \"the selector that this code runs on is the one that the IRETQ below needs\"",
        ".quad 24b",
        ".asciz \"it returns to the privilege and the selectors that it runs on\"",
        ".popsection",
        programs = sym PROGRAMS,
        left = sym left,
        shared = sym SHARED,
        several = sym SEVERAL,
        info = const INFO,
        page = sym hypercall_page,
        dispatch = sym dispatch,
        cs = const offset_of!(TrapFrame, cs),
        ss = const offset_of!(TrapFrame, ss),
        rip = const offset_of!(TrapFrame, rip),
        rsp = const offset_of!(TrapFrame, rsp),
        rbp = const offset_of!(TrapFrame, rbp),
        vector = const offset_of!(TrapFrame, vector),
        event = const EVENT_VECTOR,
        mask = const UPCALL_MASK,
        pending = const UPCALL_PENDING,
        iret = const IRET as usize * HYPERCALL_ENTRY_SIZE,
    )
}

/// The entry point of events.
pub(crate) fn event_entry() -> u64 {
    address(plain::<EVENT_VECTOR>)
}

/// The entry point of system calls, whose frame is that of an exception without an error code.
pub(crate) fn syscall_entry() -> u64 {
    address(plain::<SYSCALL_VECTOR>)
}

/// The entry point of the failsafe callback.
pub(crate) fn failsafe_entry() -> u64 {
    address(failsafe)
}

/// Vectors and entry points of the exceptions (SDM vol. 3, 6.3; NMIs have a callback instead).
pub(super) fn exceptions() -> impl Iterator<Item = (u8, u64)> {
    let all: [(u8, Entry); 18] = [
        (0, plain::<0>),
        (1, plain::<1>),
        (3, plain::<3>),
        (4, plain::<4>),
        (5, plain::<5>),
        (6, plain::<6>),
        (7, plain::<7>),
        (8, with_error::<8>),
        (10, with_error::<10>),
        (11, with_error::<11>),
        (12, with_error::<12>),
        (13, with_error::<13>),
        (14, with_error::<14>),
        (16, plain::<16>),
        (17, with_error::<17>),
        (18, plain::<18>),
        (19, plain::<19>),
        (21, with_error::<21>),
    ];
    all.into_iter().map(|(vector, entry)| (vector, address(entry)))
}

fn address(entry: Entry) -> u64 {
    (entry as *const ()).addr() as u64
}
