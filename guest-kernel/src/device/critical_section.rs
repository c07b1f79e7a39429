//! Sections with interrupts off, in which drivers work.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};

use crate::machine::{Current, Machine};

/// Whether a section is in progress.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// Runs `f` with interrupts off, as drivers need it. They are on afterwards, unless this call is inside another `f`: a
/// driver's section may print, and the console's driver has a section of its own.
pub fn without_interrupts<R>(f: impl FnOnce() -> R) -> R {
    let outermost = !ENTERED.load(Ordering::Relaxed);
    if outermost {
        Current::interrupts_off();
        ENTERED.store(true, Ordering::Relaxed);
    }
    let result = f();
    if outermost {
        ENTERED.store(false, Ordering::Relaxed);
        Current::interrupts_on();
    }
    result
}

/// Turns interrupts off for good. For a panic.
pub fn keep_interrupts_off() {
    ENTERED.store(true, Ordering::Relaxed);
    Current::interrupts_off();
}
