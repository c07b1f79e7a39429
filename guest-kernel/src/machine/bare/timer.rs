//! Deadlines and ticks over the 8254, whose count reaches 55 ms at most.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::pit::{self, HZ, MAX_TICKS};
use super::tsc;

const NS_PER_SECOND: u64 = 1_000_000_000;
/// The longest time that the counter counts in one go.
const MAX_NS: u64 = MAX_TICKS * NS_PER_SECOND / HZ;

static DEADLINE: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU8 = AtomicU8::new(NONE);
/// Ticks that are still to come.
static TICKS: AtomicU64 = AtomicU64::new(0);

/// No deadline is set: a timer interrupt means nothing.
const NONE: u8 = 0;
/// The count in progress ends before the deadline.
const PARTIAL: u8 = 1;
/// The count in progress ends at the deadline.
const FINAL: u8 = 2;
/// The counter starts again by itself.
const PERIODIC: u8 = 3;

/// Arms the timer for `deadline`, in nanoseconds of the clock. A longer time is counted in several parts.
pub fn arm(deadline: u64) {
    DEADLINE.store(deadline, Ordering::Relaxed);
    let ns = deadline.saturating_sub(tsc::nanoseconds());
    COUNT.store(if ns <= MAX_NS { FINAL } else { PARTIAL }, Ordering::Relaxed);
    pit::start(counts(ns));
}

/// Requests `count` interrupts, `period` nanoseconds apart or a little more; returns how much it is.
pub fn tick(period: u64, count: u64) -> u64 {
    let counts = counts(period).max(2);
    TICKS.store(count, Ordering::Relaxed);
    COUNT.store(PERIODIC, Ordering::Relaxed);
    pit::start_periodic(counts);
    counts * NS_PER_SECOND / HZ
}

/// Counts that take `ns` nanoseconds or a little more, as far as the counter can count.
fn counts(ns: u64) -> u64 {
    if ns < MAX_NS { (ns * HZ).div_ceil(NS_PER_SECOND).max(1) } else { MAX_TICKS }
}

/// For the handler of a timer interrupt: whether it is a tick, or the deadline was reached. If not, starts the next part
/// of the way there. Nothing has to be done for the next tick; the last one stops the counter.
pub fn expired() -> bool {
    let count = COUNT.load(Ordering::Relaxed);
    match count {
        FINAL => COUNT.store(NONE, Ordering::Relaxed),
        PARTIAL => arm(DEADLINE.load(Ordering::Relaxed)),
        PERIODIC if TICKS.fetch_sub(1, Ordering::Relaxed) == 1 => {
            COUNT.store(NONE, Ordering::Relaxed);
            pit::stop();
        }
        _ => {}
    }
    matches!(count, FINAL | PERIODIC)
}
