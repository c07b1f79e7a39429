//! The first instructions, and the note by which a loader recognises the image.
//!
//! The boot protocol ("Paravane" note 1, version 1): entered at `_start` in long mode at ring 0, with interrupts off
//! and paging on; CR3 maps the virtual base (note 2), and the addresses after it, to physical memory from 0 on, in
//! 4 KiB pages, past everything loaded and at least 512 KiB more; RSI is the physical address of an `hvm_start_info`,
//! and RSP the top of a stack above which nothing is in use. The protocol promises no descriptor table, and nothing
//! of CR0 and CR4 beyond what long mode needs.
//!
//! The assembly is expanded in the image's own crate, whose object files the linker always takes.

use crate::machine::interface::Boot;
use crate::memory::frames::{Frame, PAGE_SIZE};
use crate::memory::layout::VIRT_BASE;

use super::mmu::{self, BareMmu};
use super::{start_info, uart};

/// Makes `$start`, an `unsafe fn(Boot, BareMmu) -> !`, the start of the kernel on this machine.
#[macro_export]
macro_rules! entry {
    ($start:path) => {
        extern "C" fn kernel_main(start_info: u64, boot_stack: u64) -> ! {
            // SAFETY: called once, by `_start`, with the registers that the loader left.
            let (boot, mmu) = unsafe { $crate::machine::bare::entry::enter(start_info, boot_stack) };
            // SAFETY: called once, on the stack of `_start`, with interrupts off as the protocol promises.
            unsafe { $start(boot, mmu) }
        }

        ::core::arch::global_asm!(
            ".pushsection .note.Paravane, \"a\", @note",
            ".p2align 2",
            ".long 9, 4, 1",
            ".asciz \"Paravane\"",
            ".p2align 2",
            ".long 1",
            ".long 9, 8, 2",
            ".asciz \"Paravane\"",
            ".p2align 2",
            ".quad __virt_base",
            ".popsection",
            ".pushsection .bss.page_aligned, \"aw\", @nobits",
            ".p2align 12",
            ".skip 65536",
            "stack_top:",
            ".popsection",
            ".pushsection .text.entry, \"ax\", @progbits",
            ".globl _start",
            "_start:",
            "cld",
            "xor ebp, ebp",
            "mov rax, cr0",
            "and eax, ~(1 << 2 | 1 << 3)", // EM and TS off, or SSE faults (SDM vol. 3, 14.1)
            "or eax, 1 << 1 | 1 << 16",    // MP; WP, or ring 0 may write to read-only pages
            "mov cr0, rax",
            "mov rax, cr4",
            "or eax, 1 << 9 | 1 << 10", // OSFXSR, OSXMMEXCPT: compiled Rust uses SSE
            "mov cr4, rax",
            "mov rdi, rsi",
            "mov rsi, rsp",
            "lea rsp, [rip + stack_top]",
            "call {main}",
            "ud2",
            ".popsection",
            main = sym kernel_main,
        );
    };
}

/// Prepares the console, and reads what the loader passed. Called by the code of [`entry!`](crate::entry).
///
/// # Safety
/// Called once, with RSI and RSP as the loader left them.
pub unsafe fn enter(start_info: u64, boot_stack: u64) -> (Boot, BareMmu) {
    uart::init();
    let first_free = Frame((boot_stack - VIRT_BASE).div_ceil(PAGE_SIZE));
    // SAFETY: the loader passed the structure's address in RSI, and it lies in the initial mapping.
    let boot = unsafe { start_info::read(start_info, first_free, mmu::read_root()) };
    let mmu = BareMmu::new(boot.memory.root);
    (boot, mmu)
}
