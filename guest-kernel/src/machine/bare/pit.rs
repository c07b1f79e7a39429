//! The 8254 timer's channel 0, as a one-shot timer.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::{port, tsc};

const CHANNEL_0: u16 = 0x40;
const CONTROL: u16 = 0x43;
/// Channel 0, low byte then high byte, mode 0: interrupt on terminal count.
const ONE_SHOT: u8 = 0x30;
/// Status and count of channel 0 (Intel's data sheet of the 8254, "Read-Back Command").
const READ_BACK: u8 = 0xc2;
/// In the status: the output is high, which in this mode it is from the terminal count on.
const OUTPUT: u8 = 0x80;

/// What the counter counts in a second.
pub const HZ: u64 = 1_193_182;
/// The most it counts, and in how many nanoseconds.
pub const MAX_TICKS: u64 = 0xffff;
const MAX_NS: u64 = MAX_TICKS * NS_PER_SECOND / HZ;
const NS_PER_SECOND: u64 = 1_000_000_000;

static DEADLINE: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU8 = AtomicU8::new(NONE);

/// No deadline: a request that comes all the same means nothing.
const NONE: u8 = 0;
/// The count under way does not reach the deadline.
const PARTIAL: u8 = 1;
/// It does.
const FINAL: u8 = 2;

/// Arms the timer for `deadline`. What the counter cannot count in one go it counts in several.
pub fn arm(deadline: u64) {
    DEADLINE.store(deadline, Ordering::Relaxed);
    let ns = deadline.saturating_sub(tsc::nanoseconds());
    COUNT.store(if ns <= MAX_NS { FINAL } else { PARTIAL }, Ordering::Relaxed);
    start(if ns < MAX_NS { (ns * HZ).div_ceil(NS_PER_SECOND).max(1) } else { MAX_TICKS });
}

/// For the interrupt handler: whether the deadline was reached. If not, counting goes on.
pub fn expired() -> bool {
    let count = COUNT.load(Ordering::Relaxed);
    match count {
        FINAL => COUNT.store(NONE, Ordering::Relaxed),
        PARTIAL => arm(DEADLINE.load(Ordering::Relaxed)),
        _ => {}
    }
    count == FINAL
}

/// Stops counting: without a count after its control word the counter waits for one.
pub fn stop() {
    // SAFETY: programs the counter.
    unsafe { port::write_u8(CONTROL, ONE_SHOT) };
}

/// Starts counting down from `ticks`.
pub fn start(ticks: u64) {
    // SAFETY: programs the counter; all it does is request an interrupt.
    unsafe {
        port::write_u8(CONTROL, ONE_SHOT);
        port::write_u8(CHANNEL_0, ticks as u8);
        port::write_u8(CHANNEL_0, (ticks >> 8) as u8);
    }
}

/// Freezes a copy of the status and the count for [`latched`].
pub fn latch() {
    // SAFETY: reading back does not disturb the count.
    unsafe { port::write_u8(CONTROL, READ_BACK) };
}

/// The frozen count; `None` if it has run out since it was started, from when on it counts from its top again.
pub fn latched() -> Option<u64> {
    // SAFETY: after a read-back command, a read returns the status and two more the count's bytes, low one first.
    let [status, low, high] = unsafe { core::array::from_fn(|_| port::read_u8(CHANNEL_0)) };
    (status & OUTPUT == 0).then(|| u16::from_le_bytes([low, high]).into())
}
