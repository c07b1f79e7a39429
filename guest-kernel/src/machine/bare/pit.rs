//! The 8254 timer's channel 0, as a one-shot timer.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::{port, tsc};

const CHANNEL_0: u16 = 0x40;
const CONTROL: u16 = 0x43;
/// Channel 0, low byte then high byte, mode 0: interrupt on terminal count.
const ONE_SHOT: u8 = 0x30;
const LATCH: u8 = 0x00;

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

/// Freezes a copy of the count for [`latched`].
pub fn latch() {
    // SAFETY: latching does not disturb the count.
    unsafe { port::write_u8(CONTROL, LATCH) };
}

/// The frozen count.
pub fn latched() -> u64 {
    // SAFETY: after a latch command, two reads return the copy's bytes, low one first.
    unsafe { u64::from(port::read_u8(CHANNEL_0)) | u64::from(port::read_u8(CHANNEL_0)) << 8 }
}
