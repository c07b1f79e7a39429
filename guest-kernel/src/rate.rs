//! Measures the rate of one counter by another, whose rate is known and which counts down to 0.
//!
//! The measuring code may be delayed at any point and for any time, because a busy host runs other work. A counter
//! that has run out restarts at its top and looks like one that has not, so each sample says whether it has run out.
//! A measurement that spans that moment is discarded, and the next attempt measures over fewer counts, which even a
//! busy host lets pass undisturbed.
#![forbid(unsafe_code)]

/// Both counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sample {
    /// The value of the counter of unknown rate.
    pub ticks: u64,
    /// The remaining count of the other counter; `None` once it has run out.
    pub left: Option<u64>,
}

/// How often a failed attempt halves the number of counts to measure over.
const HALVINGS: u32 = 4;

/// Ticks per second, measured over `counts` of a counter that counts down `hz` times per second, or over fewer if
/// attempts fail. `start` makes that counter count from its top, which is more than `counts`.
pub fn measure(hz: u64, counts: u64, mut start: impl FnMut(), mut sample: impl FnMut() -> Sample) -> u64 {
    let mut attempts = 0;
    loop {
        start();
        let first = sample();
        loop {
            let last = sample();
            let (Some(from), Some(to)) = (first.left, last.left) else { break };
            let counted = from.saturating_sub(to);
            if counted >= counts >> attempts {
                return last.ticks.wrapping_sub(first.ticks).saturating_mul(hz) / counted.max(1);
            }
        }
        attempts = HALVINGS.min(attempts + 1);
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    /// An 8254 of a PC, and a counter of 3 GHz.
    const HZ: u64 = 1_193_182;
    const COUNTS: u64 = HZ / 100;
    const TOP: u64 = 0xffff;
    const TICKS_PER_US: u64 = 3000;

    /// The measured rate when the n-th sample takes 20 us and `held_up(n)` more; and how many samples it took.
    fn measured(held_up: impl Fn(u64) -> u64) -> (u64, u64) {
        let (now_us, started_us, samples) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let rate = measure(
            HZ,
            COUNTS,
            || started_us.set(now_us.get()),
            || {
                now_us.set(now_us.get() + 20 + held_up(samples.get()));
                samples.set(samples.get() + 1);
                assert!(samples.get() < 1_000_000, "it never ends");
                let gone = (now_us.get() - started_us.get()) * HZ / 1_000_000;
                Sample { ticks: now_us.get() * TICKS_PER_US, left: TOP.checked_sub(gone) }
            },
        );
        (rate, samples.get())
    }

    #[track_caller]
    fn is_right(held_up: impl Fn(u64) -> u64) {
        let (rate, samples) = measured(held_up);
        let error = rate.abs_diff(TICKS_PER_US * 1_000_000);
        assert!(error < TICKS_PER_US * 1_000_000 / 100, "{rate} after {samples} samples");
    }

    #[test]
    fn ten_milliseconds_are_enough() {
        let (rate, samples) = measured(|_| 0);
        assert!(rate.abs_diff(TICKS_PER_US * 1_000_000) < 1_000_000 && samples < 510, "{rate}, {samples}");
    }

    /// After 45 ms there are fewer counts left than are wanted; after 55 ms the count has begun again.
    #[test]
    fn a_delay_at_any_point_leaves_the_rate_right() {
        for us in [1_000, 44_000, 46_000, 50_000, 54_000, 56_000, 65_000, 109_000, 120_000, 5_000_000] {
            for number in [0, 1, 2, 100, 400] {
                is_right(|n| if n == number { us } else { 0 });
            }
        }
    }

    #[test]
    fn a_busy_host_does_not_keep_the_measurement_going_for_ever() {
        // 3 ms, and then nothing for 400.
        is_right(|n| if n % 150 == 149 { 400_000 } else { 0 });
        let seed = Cell::new(1u64);
        for _ in 0..200 {
            is_right(|_| {
                seed.set(seed.get().wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
                if seed.get() >> 57 == 0 { seed.get() >> 40 & 0x3_ffff } else { 0 }
            });
        }
    }
}
