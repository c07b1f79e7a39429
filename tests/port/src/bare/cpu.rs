//! Instructions.

use core::arch::asm;

/// RFLAGS.IF.
const INTERRUPT_FLAG: u64 = 1 << 9;

/// Writes a byte to a port.
///
/// # Safety
/// The device's answer does not concern memory that Rust uses.
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads a byte from a port.
///
/// # Safety
/// The device expects it.
pub unsafe fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

// ANCHOR: sections
/// Runs `f` with interrupts off.
pub fn without_interrupts<R>(f: impl FnOnce() -> R) -> R {
    let flags: u64;
    // SAFETY: interrupts are handled later, if at all.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    let result = f();
    if flags & INTERRUPT_FLAG != 0 {
        // SAFETY: they were on before.
        unsafe { asm!("sti", options(nostack)) };
    }
    result
}

/// Waits for interrupts until `done`.
pub fn wait_until(mut done: impl FnMut() -> bool) {
    // SAFETY: interrupts have handlers. One that arrives between the test and HLT ends the wait, because STI takes
    // effect after the instruction behind it (SDM vol. 2B, STI).
    unsafe {
        asm!("cli", options(nostack));
        while !done() {
            asm!("sti", "hlt", "cli", options(nostack));
        }
        asm!("sti", options(nostack));
    }
}
// ANCHOR_END: sections

/// Turns the machine off.
pub fn power_off() -> ! {
    // SAFETY: nothing comes after it.
    unsafe { asm!("out dx, ax", in("dx") 0x604_u16, in("ax") 0x2000_u16, options(nomem, nostack)) };
    loop {
        core::hint::spin_loop();
    }
}
