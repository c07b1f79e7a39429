//! Waiting for deadlines: the machine's one timer, armed for the earliest timer of a queue.
#![forbid(unsafe_code)]

use crate::interrupts::timer;
use crate::machine::{Current, Machine};
use crate::timers::TimerQueue;

/// Idles until the next timer of `queue` expires, and takes it; `None` when no timer is pending.
///
/// Interrupts are on.
pub fn next<T: Copy, const N: usize>(queue: &mut TimerQueue<T, N>) -> Option<T> {
    loop {
        if let Some(token) = queue.expire(Current::clock()) {
            return Some(token);
        }
        let deadline = queue.next_deadline()?;
        let before = timer::count();
        Current::interrupts_off();
        Current::arm_timer(deadline);
        while timer::count() == before {
            Current::wait();
        }
        Current::interrupts_on();
    }
}
