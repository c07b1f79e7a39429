//! Ports, control registers, the interrupt flag, and the return from an interrupt.

use core::arch::{asm, naked_asm};

use crate::machine::bare::descriptors::{CODE, DATA};
use crate::machine::bare::{Bare, BareMmu, mmu, uart};
use crate::machine::primitive::{Did, Primitive, interrupt_waits_for};

/// Reading a port.
pub const IN: Primitive<BareMmu> = Primitive::new(
    "in",
    "IN AL, DX of the UART's line status",
    read_port,
    // The transmitter is empty; something may have been typed.
    |_, did| did.returned & 0xfe == 0x60,
);

#[unsafe(naked)]
unsafe extern "C" fn read_port(n: u64, _: u64, _: u64, _: u64) -> u64 {
    naked_asm!(
        "mov edx, {port}",
        ".p2align 6",
        "2:",
        ".rept 4",
        "in al, dx",
        ".endr",
        "sub rdi, 4",
        "jnz 2b",
        "movzx eax, al",
        "ret",
        port = const uart::LINE_STATUS,
    )
}

/// Writing the task priority.
pub const CR8WR: Primitive<BareMmu> = Primitive {
    prepare: |_| {
        // SAFETY: an 8259 asks no task priority.
        unsafe { asm!("mov cr8, {}", in(reg) 5u64, options(nomem, nostack, preserves_flags)) };
        Ok([0; 3])
    },
    ..Primitive::new("cr8wr", "MOV CR8, 0", write_cr8, |_, _| {
        let cr8: u64;
        // SAFETY: reading CR8 has no effect.
        unsafe { asm!("mov {}, cr8", out(reg) cr8, options(nomem, nostack, preserves_flags)) };
        cr8 == 0
    })
};

#[unsafe(naked)]
unsafe extern "C" fn write_cr8(n: u64, _: u64, _: u64, _: u64) -> u64 {
    naked_asm!(
        "xor eax, eax",
        ".p2align 6",
        "2:",
        ".rept 4",
        "mov cr8, rax",
        ".endr",
        "sub rdi, 4",
        "jnz 2b",
        "ret",
    )
}

/// The interrupt flag, off and on.
pub const CLISTI: Primitive<BareMmu> = Primitive::new("clisti", "CLI; STI", toggle, |_, _| {
    interrupt_waits_for::<Bare>(|| {
        // SAFETY: the handlers are installed, and share nothing but atomics with what they interrupt.
        unsafe { toggle(4, 0, 0, 0) };
    })
});

/// Leaves interrupts on.
#[unsafe(naked)]
unsafe extern "C" fn toggle(n: u64, _: u64, _: u64, _: u64) -> u64 {
    naked_asm!(".p2align 6", "2:", ".rept 4", "cli", "sti", ".endr", "sub rdi, 4", "jnz 2b", "ret")
}

/// Reading the root of the page tables.
pub const CR3RD: Primitive<BareMmu> =
    Primitive::new("cr3rd", "MOV from CR3", read_cr3, |_, did| did.returned == mmu::expected_root().0 << 12);

#[unsafe(naked)]
unsafe extern "C" fn read_cr3(n: u64, _: u64, _: u64, _: u64) -> u64 {
    naked_asm!(".p2align 6", "2:", ".rept 4", "mov rax, cr3", ".endr", "sub rdi, 4", "jnz 2b", "ret",)
}

/// Writing it: the same one again.
pub const CR3WR: Primitive<BareMmu> = Primitive {
    prepare: |_| Ok([mmu::expected_root().0 << 12, 0, 0]),
    ..Primitive::new("cr3wr", "make the same address space the current one", write_cr3, |_, _| {
        mmu::read_root() == mmu::expected_root()
    })
};

#[unsafe(naked)]
unsafe extern "C" fn write_cr3(n: u64, root: u64, _: u64, _: u64) -> u64 {
    naked_asm!(".p2align 6", "2:", ".rept 4", "mov cr3, rsi", ".endr", "sub rdi, 4", "jnz 2b", "ret",)
}

/// The return from an interrupt within the kernel, with a frame made for it.
pub const IRET: Primitive<BareMmu> = Primitive::new(
    "iret",
    "IRETQ within the kernel, its frame included",
    interrupt_return,
    |_, did: &Did| did.returned == did.last,
);

#[unsafe(naked)]
unsafe extern "C" fn interrupt_return(n: u64, _: u64, _: u64, _: u64) -> u64 {
    naked_asm!(
        "xor eax, eax",
        ".p2align 6",
        "2:",
        ".rept 4",
        "mov rcx, rsp",
        "push {data}",
        "push rcx",
        "push 2", // interrupts off
        "push {code}",
        "lea rcx, [rip + 3f]",
        "push rcx",
        "iretq",
        "3:",
        "inc rax",
        ".endr",
        "sub rdi, 4",
        "jnz 2b",
        "ret",
        code = const CODE,
        data = const DATA,
    )
}
