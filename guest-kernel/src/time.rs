//! Timer interrupts, and deadlines over them.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::{Current, Machine};
use crate::timers::TimerQueue;

static INTERRUPTS: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);

/// For the machine's interrupt handler: the timer went off.
pub fn interrupt() {
    LAST.store(Current::clock(), Ordering::Relaxed);
    INTERRUPTS.fetch_add(1, Ordering::Release);
}

/// How often the timer has gone off.
pub fn interrupts() -> u64 {
    INTERRUPTS.load(Ordering::Acquire)
}

/// Where that count is, for code that must not use registers to watch it.
pub const fn counter() -> *const u64 {
    INTERRUPTS.as_ptr()
}

/// When the timer went off last, in nanoseconds of [`Machine::clock`].
pub fn last_interrupt() -> u64 {
    LAST.load(Ordering::Relaxed)
}

/// Idles until the next timer of `queue` expires and takes it; `None` when nothing is pending.
///
/// Interrupts are on.
pub fn next<T: Copy, const N: usize>(queue: &mut TimerQueue<T, N>) -> Option<T> {
    loop {
        if let Some(token) = queue.expire(Current::clock()) {
            return Some(token);
        }
        let deadline = queue.next_deadline()?;
        let before = interrupts();
        Current::interrupts_off();
        Current::arm_timer(deadline);
        while interrupts() == before {
            Current::wait();
        }
        Current::interrupts_on();
    }
}
