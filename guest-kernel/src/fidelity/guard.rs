//! Running code that may fault: the handler does not return to it, but goes on after it, in whatever ring it was.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::bare::descriptors::{DATA, set_gate};

use super::Answer;

pub(super) const GENERAL_PROTECTION: u64 = 13;
pub(super) const PAGE_FAULT: u64 = 14;

/// The stack of [`enter`]; where [`resume`] continues.
static STACK: AtomicU64 = AtomicU64::new(0);
/// The vector of the exception that came, or [`NONE`].
static VECTOR: AtomicU64 = AtomicU64::new(NONE);
const NONE: u64 = u64::MAX;

/// Code to try: it returns a value, or goes to [`resume`] with one in RAX. It may change every register.
pub(super) type Attempt = unsafe extern "C" fn(u64, u64) -> u64;

/// Makes every exception that may come end the attempt.
pub(super) fn install() {
    let gates: [(usize, unsafe extern "C" fn() -> !); 10] = [
        (0, fault::<0>),
        (1, fault::<1>),
        (3, fault::<3>),
        (6, fault::<6>),
        (7, fault::<7>),
        (10, fault::<10>),
        (11, fault::<11>),
        (12, fault::<12>),
        (13, fault::<GENERAL_PROTECTION>),
        (14, fault::<PAGE_FAULT>),
    ];
    for (vector, handler) in gates {
        set_gate(vector, handler as *const () as u64, true);
    }
}

/// Tries it; returns the value or the fault.
pub(super) fn attempt(code: Attempt, first: u64, second: u64) -> Answer {
    VECTOR.store(NONE, Ordering::Relaxed);
    // SAFETY: `enter` keeps what a caller relies on, however the attempt ends.
    let value = unsafe { enter(code, first, second) };
    match VECTOR.load(Ordering::Relaxed) {
        NONE => Answer::Value(value),
        vector => Answer::Fault(vector),
    }
}

#[unsafe(naked)]
unsafe extern "C" fn enter(code: Attempt, first: u64, second: u64) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rip + {stack}], rsp",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "call rax",
        "jmp {resume}",
        stack = sym STACK,
        resume = sym resume,
    )
}

/// Ends the attempt from anywhere, with its value in RAX.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn resume() -> ! {
    naked_asm!(
        "cld",
        "mov rsp, [rip + {stack}]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        stack = sym STACK,
    )
}

/// Handles an exception: entered on its own stack, with interrupts off and, from another ring, without SS.
#[unsafe(naked)]
unsafe extern "C" fn fault<const NUMBER: u64>() -> ! {
    naked_asm!(
        "mov qword ptr [rip + {vector}], {number}",
        "mov eax, {data}",
        "mov ss, eax",
        "jmp {resume}",
        vector = sym VECTOR,
        number = const NUMBER,
        data = const DATA,
        resume = sym resume,
    )
}
