//! Timer interrupts: how many arrived, and when the last one did.

use core::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);

/// Records a timer interrupt at `now`, in nanoseconds of the machine's clock. Called by the interrupt handler.
pub fn arrived(now: u64) {
    LAST.store(now, Ordering::Relaxed);
    COUNT.fetch_add(1, Ordering::Release);
}

/// How many timer interrupts have arrived.
pub fn count() -> u64 {
    COUNT.load(Ordering::Acquire)
}

/// The address of [`count`]'s counter, for code that must not use vector registers while it polls.
pub const fn counter() -> *const u64 {
    COUNT.as_ptr()
}

/// When the last timer interrupt arrived, in nanoseconds of the machine's clock.
pub fn last() -> u64 {
    LAST.load(Ordering::Relaxed)
}
