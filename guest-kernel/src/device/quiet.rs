//! Sections with interrupts off, in which drivers work.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};

use crate::machine::{Current, Machine};

/// Whether [`quietly`] is at work.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Runs `f` with interrupts off, as drivers want it; they are on afterwards, but inside of another such `f`: what one
/// driver does may be printed by another.
pub fn quietly<R>(f: impl FnOnce() -> R) -> R {
    Current::interrupts_off();
    let outermost = !QUIET.swap(true, Ordering::Relaxed);
    let result = f();
    if outermost {
        QUIET.store(false, Ordering::Relaxed);
        Current::interrupts_on();
    }
    result
}

/// For who panics: interrupts stay off for good.
pub fn stay_quiet() {
    QUIET.store(true, Ordering::Relaxed);
    Current::interrupts_off();
}
