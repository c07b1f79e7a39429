//! The 8254 timer, and the two 8259 controllers through which it interrupts.

use core::sync::atomic::{AtomicPtr, Ordering};

use super::cpu::outb;
use super::exceptions;

const PRIMARY: u16 = 0x20;
const SECONDARY: u16 = 0xa0;
/// The vector of request line 0.
pub const FIRST_VECTOR: u8 = 32;
const END_OF_INTERRUPT: u8 = 0x20;
const CHANNEL_0: u16 = 0x40;
const CONTROL: u16 = 0x43;
/// Counts between two ticks: 1193182 a second.
const COUNTS: u16 = 1193;

static TICK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

// ANCHOR: start
/// Has `tick` called a thousand times a second.
pub fn start(tick: fn()) {
    TICK.store(tick as *mut (), Ordering::Relaxed);
    exceptions::load();
    // SAFETY: the controllers' and the timer's initialization, with interrupts off; they have handlers.
    unsafe {
        for (port, value) in [
            (PRIMARY, 0x11),
            (SECONDARY, 0x11),
            (PRIMARY + 1, FIRST_VECTOR),
            (SECONDARY + 1, FIRST_VECTOR + 8),
            (PRIMARY + 1, 1 << 2),
            (SECONDARY + 1, 2),
            (PRIMARY + 1, 1),
            (SECONDARY + 1, 1),
            (PRIMARY + 1, !1),
            (SECONDARY + 1, !0),
            (CONTROL, 0x34), // channel 0, both bytes, periodic
            (CHANNEL_0, COUNTS as u8),
            (CHANNEL_0, (COUNTS >> 8) as u8),
        ] {
            outb(port, value);
        }
    }
}

/// Handles the timer's interrupt.
pub fn interrupt() {
    let tick = TICK.load(Ordering::Relaxed);
    // SAFETY: `start` stored a function there before it let the timer interrupt.
    unsafe { core::mem::transmute::<*mut (), fn()>(tick)() };
    // SAFETY: once for each interrupt.
    unsafe { outb(PRIMARY, END_OF_INTERRUPT) };
}
// ANCHOR_END: start

/// Masks the timer.
pub fn stop() {
    // SAFETY: no more requests.
    unsafe { outb(PRIMARY + 1, !0) };
}
