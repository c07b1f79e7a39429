//! Faults whose handler only moves on. The trap table leads to these handlers while the operation is measured.
//!
//! The frame: RCX, R11, the error code if there is one, RIP, CS, RFLAGS, RSP, SS (see the SDK's `trap`).

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use paravane_guest::abi::segment::FLAT_KERNEL_CS;
use paravane_guest::abi::trap::{TRAP_DIVIDE_ERROR, TRAP_PAGE_FAULT, TrapInfo};
use paravane_guest::hypercall::trap::set_trap_table;
use paravane_guest::trap;

use super::done;
use super::interrupts::selectors;
use crate::machine::primitive::Primitive;
use crate::machine::pv::PvMmu;
use crate::memory::SCRATCH;
use crate::memory::frames::PAGE_SIZE;

/// Faults that the handlers below have seen.
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// The selectors that this kernel runs on: those in a frame have another privilege level.
static CODE: AtomicU64 = AtomicU64::new(0);
static STACK: AtomicU64 = AtomicU64::new(0);

/// A page that nothing maps.
const NOWHERE: u64 = SCRATCH - PAGE_SIZE;

/// A page fault.
pub const PGFAULT: Primitive<PvMmu> = Primitive {
    prepare: |_| {
        intercept(TRAP_PAGE_FAULT, skip_load);
        Ok([NOWHERE, 0, 0])
    },
    finish: |_, _| done(trap::install()),
    ..Primitive::new(
        "pgfault",
        "load from a page that is not mapped; the handler moves on",
        load,
        |_, did| FAULTS.load(Ordering::Relaxed) == did.all && trap::fault_address() == NOWHERE,
    )
};

/// A divide error.
pub const DIVZERO: Primitive<PvMmu> = Primitive {
    prepare: |_| {
        intercept(TRAP_DIVIDE_ERROR, skip_divide);
        Ok([0; 3])
    },
    finish: |_, _| done(trap::install()),
    ..Primitive::new("divzero", "DIV by 0; the handler moves on", divide, |_, did| {
        FAULTS.load(Ordering::Relaxed) == did.all
    })
};

/// Makes `handler` the one of a vector.
fn intercept(vector: u8, handler: unsafe extern "C" fn() -> !) {
    FAULTS.store(0, Ordering::Relaxed);
    let (code, stack) = selectors();
    CODE.store(code, Ordering::Relaxed);
    STACK.store(stack, Ordering::Relaxed);
    let address = handler as *const () as u64;
    // Without TI_IF: upcalls stay masked as they are.
    let entry = TrapInfo { vector, cs: FLAT_KERNEL_CS, address, ..TrapInfo::default() };
    // SAFETY: the handler takes the frame of this vector.
    done(unsafe { set_trap_table(&[entry, TrapInfo::default()]) });
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
        "add qword ptr [rsp + 24], 3",
        "mov rcx, [rip + {code}]",
        "mov [rsp + 32], rcx",
        "mov rcx, [rip + {stack}]",
        "mov [rsp + 56], rcx",
        "pop rcx",
        "pop r11",
        "add rsp, 8",
        "24: iretq",
        ".pushsection .paravane.audit, \"\", @progbits",
        ".quad 24b",
        ".asciz \"it returns to the privilege and the selectors that it runs on\"",
        ".popsection",
        faults = sym FAULTS,
        code = sym CODE,
        stack = sym STACK,
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
    naked_asm!(
        "inc qword ptr [rip + {faults}]",
        "add qword ptr [rsp + 16], 2",
        "mov rcx, [rip + {code}]",
        "mov [rsp + 24], rcx",
        "mov rcx, [rip + {stack}]",
        "mov [rsp + 48], rcx",
        "pop rcx",
        "pop r11",
        "24: iretq",
        ".pushsection .paravane.audit, \"\", @progbits",
        ".quad 24b",
        ".asciz \"it returns to the privilege and the selectors that it runs on\"",
        ".popsection",
        faults = sym FAULTS,
        code = sym CODE,
        stack = sym STACK,
    )
}
