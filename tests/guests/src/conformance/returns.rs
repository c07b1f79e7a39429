//! `iret` by the hypercall page's entry, as a kernel that was not written with the SDK makes it.

use core::arch::naked_asm;

use paravane_guest::abi::hypercall::{HYPERCALL_ENTRY_SIZE, IRET};
use paravane_guest::event;

use super::Bench;

// SAFETY: a page of the image, of which only the address is taken.
unsafe extern "C" {
    /// The page that the hypervisor fills.
    static hypercall_page: u8;
}

/// Flags of a kernel that takes events and CF, which shows that they are loaded.
const FLAGS: u64 = 0x203;
/// FLAT_KERNEL_CS64 and FLAT_KERNEL_SS64 with the privilege level cleared: a kernel's (public/arch-x86/xen-x86_64.h).
const KERNEL_CS: u64 = 0xe030;
const KERNEL_SS: u64 = 0xe028;

pub(super) fn run(bench: &mut Bench) {
    let suite = &mut bench.suite;
    event::disable();
    // SAFETY: it saves what is its caller's, and comes back.
    suite.equal("registers-and-flags", unsafe { return_by_page() }, 0);
    suite.holds("events-as-the-flags-say", event::is_enabled());
}

/// Leaves by `iret` for its own end; which of rcx, r11, rax, CF (bits 0 to 3) are not as they were before it.
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
        // The frame's own flags: none. The entry pushes the other three registers.
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
