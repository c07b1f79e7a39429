//! The upcall mask, the return from an upcall, and the upcall itself.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use paravane_guest::event::{self, Port};

use super::done;
use crate::machine::primitive::{Did, Primitive, interrupt_waits_for};
use crate::machine::pv::{Pv, PvMmu};

/// The upcall mask, set and cleared, with the test for what arrived meanwhile: the virtual CLI and STI.
pub const CLISTI: Primitive<PvMmu> = Primitive::new("clisti", "mask upcalls; unmask them", toggle, |_, _| {
    interrupt_waits_for::<Pv>(|| _ = toggle(4, 0, 0, 0))
});

extern "C" fn toggle(n: u64, _: u64, _: u64, _: u64) -> u64 {
    let pair = || {
        event::disable();
        event::enable();
    };
    for _ in 0..n / 4 {
        pair();
        pair();
        pair();
        pair();
    }
    n
}

/// The return from an upcall or an exception to the kernel, which needs no hypercall.
pub const IRET: Primitive<PvMmu> = Primitive {
    prepare: |_| {
        let (code, stack) = selectors();
        Ok([code, stack, 0])
    },
    ..Primitive::new(
        "iret",
        "IRETQ within the kernel, its frame included",
        interrupt_return,
        |_, did: &Did| did.returned == did.last,
    )
};

/// The selectors that this kernel runs on.
pub(super) fn selectors() -> (u64, u64) {
    let (code, stack): (u64, u64);
    // SAFETY: reading them has no effect.
    unsafe {
        asm!(
            "22: mov {code:e}, cs",
            "23: mov {stack:e}, ss",
            ".pushsection .paravane.audit, \"\", @progbits",
            ".quad 22b",
            ".asciz \"the selector that this code runs on is the one that an IRETQ needs\"",
            ".quad 23b",
            ".asciz \"the selector that this code runs on is the one that an IRETQ needs\"",
            ".popsection",
            code = out(reg) code,
            stack = out(reg) stack,
            options(nomem, nostack, preserves_flags),
        );
    }
    (code, stack)
}

#[unsafe(naked)]
unsafe extern "C" fn interrupt_return(n: u64, code: u64, stack: u64, _: u64) -> u64 {
    naked_asm!(
        "xor eax, eax",
        ".p2align 6",
        "2:",
        ".rept 4",
        "mov rcx, rsp",
        "push rdx",
        "push rcx",
        "push 0x202", // RFLAGS.IF, which is always on here
        "push rsi",
        "lea rcx, [rip + 3f]",
        "push rcx",
        "24: iretq",
        "3:",
        "inc rax",
        ".pushsection .paravane.audit, \"\", @progbits",
        ".quad 24b",
        ".asciz \"it returns to the privilege and the selectors that it runs on\"",
        ".popsection",
        ".endr",
        "sub rdi, 4",
        "jnz 2b",
        "ret",
    )
}

/// Upcalls that arrived.
static UPCALLS: AtomicU64 = AtomicU64::new(0);

/// An event that the kernel sends to itself, and its upcall.
pub const UPCALL: Primitive<PvMmu> = Primitive {
    prepare: |_| {
        UPCALLS.store(0, Ordering::Relaxed);
        let port = done(event::bind_ipi(0));
        event::handle(port, |_| _ = UPCALLS.fetch_add(1, Ordering::Relaxed));
        Ok([port.0.into(), 0, 0])
    },
    finish: |_, [port, ..]| done(event::close(Port(port as u32))),
    ..Primitive::new("upcall", "send an event to oneself; its handler counts", send, |_, did| {
        UPCALLS.load(Ordering::Relaxed) == did.all
    })
};

extern "C" fn send(n: u64, port: u64, _: u64, _: u64) -> u64 {
    event::enable();
    for _ in 0..n {
        done(event::send(Port(port as u32)));
    }
    event::disable();
    n
}
