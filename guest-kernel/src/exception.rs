//! Exceptions: the faults that the kernel provokes and expects, and the end of the kernel for all others.

use core::arch::{asm, naked_asm};

use crate::machine::Exception;
use crate::println;

const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

/// The kernel's handler of exceptions: resumes after an expected fault, ends the kernel for any other exception.
pub fn handle(exception: &mut Exception) {
    let at = |f: unsafe extern "C" fn()| f as *const () as u64;
    match exception.vector {
        PAGE_FAULT if exception.rip == at(probe_write) || exception.rip == at(probe_read) => {
            exception.rip = at(probe_refused);
        }
        GENERAL_PROTECTION if exception.rip == at(mark) => exception.rip = at(mark_refused),
        _ => fatal(exception),
    }
}

fn fatal(exception: &Exception) -> ! {
    let Exception { vector, error_code, rip, address } = *exception;
    println!(
        "exception: vector={vector} ({}) rip={rip:#x} error-code={error_code:#x} address={address:#x}",
        name(vector)
    );
    panic!("unexpected exception {vector} at {rip:#x}");
}

const fn name(vector: u8) -> &'static str {
    match vector {
        0 => "divide error",
        3 => "breakpoint",
        6 => "invalid opcode",
        8 => "double fault",
        GENERAL_PROTECTION => "general protection",
        PAGE_FAULT => "page fault",
        _ => "see SDM vol. 3, 6.3",
    }
}

/// Writes 8 bytes at `va`, mapped or not; false if that faults.
///
/// # Safety
/// If `va` is writable, no other code relies on the memory there.
pub unsafe fn can_write(va: u64, value: u64) -> bool {
    let outcome: u64;
    // SAFETY: as the caller promises; a fault is caught, and the callee uses rax only.
    unsafe {
        asm!("call {}", sym probe_write, in("rdi") va, in("rsi") value, out("rax") outcome);
    }
    outcome == 0
}

/// Whether 8 bytes at `va` can be read.
pub fn can_read(va: u64) -> bool {
    let outcome: u64;
    // SAFETY: reading memory that has no side effects; a fault is caught.
    unsafe {
        asm!("call {}", sym probe_read, in("rdi") va, out("rsi") _, out("rax") outcome);
    }
    outcome == 0
}

/// Marks the event `code` for an observer outside the machine, by an `OUT` to port 0x80, the PC's diagnostic port, on
/// either machine. It is not an error if the hypervisor refuses the `OUT`.
pub fn tell(code: u8) {
    // SAFETY: writing to port 0x80 has no effect on the machine; a refusal is caught.
    unsafe {
        asm!("call {}", sym mark, in("al") code);
    }
}

/// If the access faults, it does so at the function's first instruction, by which `handle` recognises it.
#[unsafe(naked)]
unsafe extern "C" fn probe_write() {
    naked_asm!("mov [rdi], rsi", "xor eax, eax", "ret")
}

#[unsafe(naked)]
unsafe extern "C" fn probe_read() {
    naked_asm!("mov rsi, [rdi]", "xor eax, eax", "ret")
}

/// Where a faulting probe continues, with the stack as at the probe's first instruction.
#[unsafe(naked)]
unsafe extern "C" fn probe_refused() {
    naked_asm!("mov eax, 1", "ret")
}

#[unsafe(naked)]
unsafe extern "C" fn mark() {
    naked_asm!("out 0x80, al", "ret")
}

#[unsafe(naked)]
unsafe extern "C" fn mark_refused() {
    naked_asm!("ret")
}
