//! Faults whose handler only moves on. Their gates lead to these handlers while the operation is measured.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::bare::BareMmu;
use crate::machine::bare::descriptors::{gate, set_gate};
use crate::machine::primitive::Primitive;
use crate::memory::SCRATCH;
use crate::memory::frames::PAGE_SIZE;

const DIVIDE_ERROR: usize = 0;
const PAGE_FAULT: usize = 14;

/// Faults that the handlers below have seen.
static FAULTS: AtomicU64 = AtomicU64::new(0);

/// A page that nothing maps.
const NOWHERE: u64 = SCRATCH - PAGE_SIZE;

/// A page fault.
pub const PGFAULT: Primitive<BareMmu> = Primitive {
    prepare: |_| Ok([NOWHERE, intercept(PAGE_FAULT, skip_load), 0]),
    finish: |_, [_, old, _]| set_gate(PAGE_FAULT, old, true),
    ..Primitive::new(
        "pgfault",
        "load from a page that is not mapped; the handler moves on",
        load,
        |_, did| {
            let address: u64;
            // SAFETY: reading CR2 has no effect.
            unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
            FAULTS.load(Ordering::Relaxed) == did.all && address == NOWHERE
        },
    )
};

/// A divide error.
pub const DIVZERO: Primitive<BareMmu> = Primitive {
    prepare: |_| Ok([0, intercept(DIVIDE_ERROR, skip_divide), 0]),
    finish: |_, [_, old, _]| set_gate(DIVIDE_ERROR, old, true),
    ..Primitive::new("divzero", "DIV by 0; the handler moves on", divide, |_, did| {
        FAULTS.load(Ordering::Relaxed) == did.all
    })
};

/// Makes `handler` the one of a vector; returns the address of the other.
fn intercept(vector: usize, handler: unsafe extern "C" fn() -> !) -> u64 {
    FAULTS.store(0, Ordering::Relaxed);
    let old = gate(vector);
    // Below RSP the code here keeps nothing: no stack has to be switched.
    set_gate(vector, handler as *const () as u64, false);
    old
}

#[unsafe(naked)]
unsafe extern "C" fn load(n: u64, va: u64, _: u64, _: u64) -> u64 {
    naked_asm!(
        ".p2align 6",
        "2:",
        ".rept 4",
        "mov rax, [rsi]", // 3 bytes
        ".endr",
        "sub rdi, 4",
        "jnz 2b",
        "ret",
    )
}

#[unsafe(naked)]
unsafe extern "C" fn skip_load() -> ! {
    naked_asm!(
        "inc qword ptr [rip + {faults}]",
        "add qword ptr [rsp + 8], 3",
        "add rsp, 8",
        "iretq",
        faults = sym FAULTS,
    )
}

#[unsafe(naked)]
unsafe extern "C" fn divide(n: u64, zero: u64, _: u64, _: u64) -> u64 {
    naked_asm!(
        ".p2align 6",
        "2:",
        ".rept 4",
        "div esi", // 2 bytes
        ".endr",
        "sub rdi, 4",
        "jnz 2b",
        "ret",
    )
}

#[unsafe(naked)]
unsafe extern "C" fn skip_divide() -> ! {
    naked_asm!("inc qword ptr [rip + {faults}]", "add qword ptr [rsp], 2", "iretq", faults = sym FAULTS)
}
