//! `iret` through the entry in the hypercall page, as kernels that do not use the SDK make it.

use core::arch::naked_asm;

use paravane_guest::abi::hypercall::{HYPERCALL_ENTRY_SIZE, IRET};
use paravane_guest::event;

use super::Bench;

// SAFETY: this is a page of the image, and only its address is used.
unsafe extern "C" {
    /// The page that the hypervisor fills.
    static hypercall_page: u8;
}

/// Flags with interrupts enabled, and with CF, which shows that the flags are loaded.
const FLAGS: u64 = 0x203;
/// FLAT_KERNEL_CS64 and FLAT_KERNEL_SS64 with the privilege level cleared: a kernel's (public/arch-x86/xen-x86_64.h).
const KERNEL_CS: u64 = 0xe030;
const KERNEL_SS: u64 = 0xe028;

pub(super) fn run(bench: &mut Bench) {
    let suite = &mut bench.suite;
    event::disable();
    // SAFETY: it preserves the registers that a function must preserve, and returns.
    suite.equal("registers-and-flags", unsafe { return_by_page() }, 0);
    suite.holds("events-as-the-flags-say", event::is_enabled());
}

/// Makes an `iret` to its own end. Returns which of rcx, r11, rax, CF (bits 0 to 3) differ afterwards.
#[unsafe(naked)]
unsafe extern "C" fn return_by_page() -> u64 {
    naked_asm!(
        "mov rdx, rsp",
        "push {ss}",
        "push rdx",
        "push {flags}",
        "push {cs}",
        "lea rax, [rip + 2f]",
        "push rax",
        // The frame's flags word is 0. The entry pushes the other three registers.
        "push 0",
        "mov ecx, 0x1111",
        "mov r11d, 0x2222",
        "mov eax, 0x3333",
        "clc",
        "jmp {page} + {iret}",
        "2:",
        "setnc dl",
        "movzx edx, dl",
        "shl edx, 3",
        "xor esi, esi",
        "cmp rcx, 0x1111",
        "setne sil",
        "or edx, esi",
        "cmp r11, 0x2222",
        "setne sil",
        "shl esi, 1",
        "or edx, esi",
        "xor esi, esi",
        "cmp rax, 0x3333",
        "setne sil",
        "shl esi, 2",
        "or edx, esi",
        "mov eax, edx",
        "ret",
        ss = const KERNEL_SS,
        cs = const KERNEL_CS,
        flags = const FLAGS,
        page = sym hypercall_page,
        iret = const IRET as usize * HYPERCALL_ENTRY_SIZE,
    )
}
