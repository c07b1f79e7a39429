//! Deadlines over the 8254, whose count reaches 55 ms at most.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::pit::{self, HZ, MAX_TICKS};
use super::tsc;

const NS_PER_SECOND: u64 = 1_000_000_000;
/// The longest time that the counter counts in one go.
const MAX_NS: u64 = MAX_TICKS * NS_PER_SECOND / HZ;

static DEADLINE: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU8 = AtomicU8::new(NONE);

/// No deadline is set: a timer interrupt means nothing.
const NONE: u8 = 0;
/// The count in progress ends before the deadline.
const PARTIAL: u8 = 1;
/// The count in progress ends at the deadline.
const FINAL: u8 = 2;

/// Arms the timer for `deadline`, in nanoseconds of the clock. A longer time is counted in several parts.
pub fn arm(deadline: u64) {
    DEADLINE.store(deadline, Ordering::Relaxed);
    let ns = deadline.saturating_sub(tsc::nanoseconds());
    COUNT.store(if ns <= MAX_NS { FINAL } else { PARTIAL }, Ordering::Relaxed);
    pit::start(if ns < MAX_NS { (ns * HZ).div_ceil(NS_PER_SECOND).max(1) } else { MAX_TICKS });
}

/// For the handler of a timer interrupt: whether the deadline was reached. If not, starts the next part.
pub fn expired() -> bool {
    let count = COUNT.load(Ordering::Relaxed);
    match count {
        FINAL => COUNT.store(NONE, Ordering::Relaxed),
        PARTIAL => arm(DEADLINE.load(Ordering::Relaxed)),
        _ => {}
    }
    count == FINAL
}
