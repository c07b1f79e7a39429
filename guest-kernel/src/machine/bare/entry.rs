//! The first instructions, and the note by which a loader knows what it has before it.
//!
//! The boot protocol ("Paravane" note 1, version 1): entered at [`_start`](self) in long mode at ring 0, with
//! interrupts off and paging on; CR3 maps the virtual base (note 2), and what follows, to physical memory
//! from 0 on, in 4 KiB pages, past everything loaded and at least 512 KiB more; RSI is the physical address
//! of an `hvm_start_info`, and RSP the top of a stack above which nothing is in use. No descriptor table is
//! promised, and neither are CR0 and CR4 beyond what long mode needs.

use core::arch::global_asm;

use crate::frames::{Frame, PAGE_SIZE};
use crate::kernel;
use crate::memory::VIRT_BASE;

use super::{BareMmu, mmu, start_info, uart};

global_asm!(
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
    "or eax, 1 << 9 | 1 << 10", // OSFXSR, OSXMMEXCPT: Rust's code uses SSE
    "mov cr4, rax",
    "mov rdi, rsi",
    "mov rsi, rsp",
    "lea rsp, [rip + stack_top]",
    "call {main}",
    "ud2",
    ".popsection",
    main = sym main,
);

extern "C" fn main(start_info: u64, boot_stack: u64) -> ! {
    uart::init();
    let first_free = Frame((boot_stack - VIRT_BASE).div_ceil(PAGE_SIZE));
    // SAFETY: the loader passed the structure's address in RSI, and it lies in the initial mapping.
    let boot = unsafe { start_info::read(start_info, first_free, mmu::read_root()) };
    let mmu = BareMmu::new(boot.root);
    // SAFETY: once, on the stack above, interrupts off as the protocol has it.
    unsafe { kernel::start(boot, mmu) }
}
