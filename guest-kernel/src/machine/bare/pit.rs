//! The 8254 timer's channel 0.

use core::sync::atomic::{AtomicU8, Ordering};

use super::port;

const CHANNEL_0: u16 = 0x40;
const CONTROL: u16 = 0x43;
/// Channel 0, low byte then high byte, mode 0: interrupt on terminal count.
const ONE_SHOT: u8 = 0x30;
/// The same with mode 2: an interrupt at the end of each count, which begins again by itself.
const PERIODIC: u8 = 0x34;
/// Latches status and count of channel 0 (Intel's data sheet of the 8254, "Read-Back Command").
const READ_BACK: u8 = 0xc2;
/// In the status: the output is high, which it is in this mode from the terminal count on.
const OUTPUT: u8 = 0x80;

/// Counts a second.
pub const HZ: u64 = 1_193_182;
/// The longest count.
pub const MAX_TICKS: u64 = 0xffff;

/// The control word that is in effect.
static MODE: AtomicU8 = AtomicU8::new(0);

/// Stops counting: after a control word the counter waits for a count.
pub fn stop() {
    MODE.store(ONE_SHOT, Ordering::Relaxed);
    // SAFETY: programs the counter.
    unsafe { port::write_u8(CONTROL, ONE_SHOT) };
}

/// Starts counting down from `ticks`, once.
pub fn start(ticks: u64) {
    count(ONE_SHOT, ticks);
}

/// Starts counting down from `ticks`, again and again.
pub fn start_periodic(ticks: u64) {
    count(PERIODIC, ticks);
}

/// A new count starts the counter anew; the control word is needed only for another mode (8254 data sheet, "Mode 0").
fn count(mode: u8, ticks: u64) {
    let same = MODE.swap(mode, Ordering::Relaxed) == mode;
    // SAFETY: programs the counter; its only effect is an interrupt request.
    unsafe {
        if !same {
            port::write_u8(CONTROL, mode);
        }
        port::write_u8(CHANNEL_0, ticks as u8);
        port::write_u8(CHANNEL_0, (ticks >> 8) as u8);
    }
}

/// Latches status and count for [`latched`].
pub fn latch() {
    // SAFETY: reading back does not disturb the count.
    unsafe { port::write_u8(CONTROL, READ_BACK) };
}

/// The latched count; `None` once it has run out since it was started, when the counter continues from its top.
pub fn latched() -> Option<u64> {
    // SAFETY: after a read-back command, three reads return the status and the count's low and high byte.
    let [status, low, high] = unsafe { core::array::from_fn(|_| port::read_u8(CHANNEL_0)) };
    (status & OUTPUT == 0).then(|| u16::from_le_bytes([low, high]).into())
}
