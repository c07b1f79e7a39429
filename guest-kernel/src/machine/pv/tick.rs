//! Deadlines and ticks over the one-shot timer.
//!
//! Xen has a periodic timer, too, but no period below a millisecond. Like a tickless kernel, this one sets the next
//! deadline in the handler.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use paravane_guest::time;

use crate::interrupts::timer;

/// Ticks that are still to come; 0 for a single deadline.
static TICKS: AtomicU64 = AtomicU64::new(0);
static PERIOD: AtomicU64 = AtomicU64::new(0);
/// When the next tick is due.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Requests one interrupt at `deadline`.
pub fn arm(deadline: u64) {
    TICKS.store(0, Ordering::Relaxed);
    set(deadline);
}

/// Requests `count` interrupts, `period` nanoseconds apart.
pub fn start(period: u64, count: u64) -> u64 {
    let first = time::now() + period;
    TICKS.store(count, Ordering::Relaxed);
    PERIOD.store(period, Ordering::Relaxed);
    NEXT.store(first, Ordering::Relaxed);
    set(first);
    period
}

/// For the handler of a timer interrupt.
pub fn arrived() {
    timer::arrived(time::now());
    let left = TICKS.load(Ordering::Relaxed).saturating_sub(1);
    TICKS.store(left, Ordering::Relaxed);
    if left > 0 {
        let period = PERIOD.load(Ordering::Relaxed);
        set(NEXT.fetch_add(period, Ordering::Relaxed) + period);
    }
}

fn set(deadline: u64) {
    if let Err(errno) = time::set_timer(deadline) {
        panic!("the hypervisor refused a timer: {errno}");
    }
}
