//! Clocks and timers.
//!
//! Guest and host read the same time-stamp counter, up to a constant offset, and system time is a function of it.
//! This is the function that `vcpu_time_info` publishes, computed here with the same integers, so that a deadline is
//! the same instant for guest and host. What may not be done here: arming a timer of the host; [`Timers::next`] says
//! when one is due.

use paravane_abi::shared_info::VcpuTimeInfo;
use serde::{Deserialize, Serialize};

/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;

/// Reads the time-stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and it does not access memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// System time: nanoseconds since the clock was made, from the time-stamp counter.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    tsc_start: u64,
    /// System time at `tsc_start`.
    base: u64,
    mul: u32,
    shift: i8,
    tsc_offset: u64,
}

impl Clock {
    /// A clock that starts at 0 now. `tsc_khz` is the counter's rate; `tsc_offset` is the guest's counter minus the
    /// host's (wrapping). A rate of 0, with which time would stand still, is taken as 1 GHz.
    pub fn new(tsc_khz: u64, tsc_offset: u64) -> Self {
        Self::going_on(tsc_khz, tsc_offset, 0)
    }

    /// The same, for a clock that goes on from `ns` now.
    pub fn going_on(tsc_khz: u64, tsc_offset: u64, ns: u64) -> Self {
        let (mul, shift) = scale(if tsc_khz == 0 { 1_000_000 } else { tsc_khz });
        Self { tsc_start: rdtsc(), base: ns, mul, shift, tsc_offset }
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.at(rdtsc())
    }

    /// System time at a reading of the host's counter.
    pub fn at(&self, tsc: u64) -> u64 {
        self.base.saturating_add(to_ns(tsc.saturating_sub(self.tsc_start), self.mul, self.shift))
    }

    /// The guest's counter when system time was 0, or would have been (wrapping).
    pub fn guest_tsc_at_zero(&self) -> u64 {
        let ticks = (u128::from(self.base) << 32) / u128::from(self.mul);
        let ticks = if self.shift >= 0 { ticks >> self.shift } else { ticks << -self.shift };
        self.tsc_start.wrapping_add(self.tsc_offset).wrapping_sub(ticks as u64)
    }

    /// What to add (wrapping) to the host's time-stamp counter to get the guest's.
    pub fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    /// The clock as the guest sees it: `vcpu_time_info` (public/xen.h) with an even version above `version`.
    pub fn published(&self, version: u32) -> VcpuTimeInfo {
        VcpuTimeInfo {
            version: (version | 1).wrapping_add(1),
            tsc_timestamp: self.tsc_start.wrapping_add(self.tsc_offset),
            system_time: self.base,
            tsc_to_system_mul: self.mul,
            tsc_shift: self.shift,
            ..Default::default()
        }
    }
}

/// `ns = ((tsc << shift) * mul) >> 32` for a counter of `khz` (public/xen.h, vcpu_time_info).
fn scale(khz: u64) -> (u32, i8) {
    let mut hz = khz.saturating_mul(1000);
    let mut shift = 0i8;
    while hz > 2 * NS_PER_S {
        hz >>= 1;
        shift -= 1;
    }
    while hz <= NS_PER_S {
        hz <<= 1;
        shift += 1;
    }
    // 1 GHz < hz <= 2 GHz: the quotient lies between 2^31 and 2^32.
    (((NS_PER_S << 32) / hz) as u32, shift)
}

fn to_ns(delta: u64, mul: u32, shift: i8) -> u64 {
    let shifted = if shift >= 0 { delta << shift } else { delta >> -shift };
    ((u128::from(shifted) * u128::from(mul)) >> 32) as u64
}

/// A vCPU's timers, as deadlines in system time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    singleshot: Option<u64>,
    periodic: Option<Periodic>,
    /// The time-out of SCHEDOP_poll: it wakes the vCPU, but raises no event.
    poll: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Periodic {
    period: u64,
    next: u64,
}

/// The shortest period that Xen accepts (VCPUOP_set_periodic_timer: 1 ms).
pub const MIN_PERIOD: u64 = 1_000_000;

/// What is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// VIRQ_TIMER has to be raised.
    pub timer: bool,
    /// The time-out of a poll has passed.
    pub poll: bool,
}

impl Timers {
    /// Sets or stops the one-shot timer.
    pub fn set_singleshot(&mut self, deadline: Option<u64>) {
        self.singleshot = deadline;
    }
    /// Sets or stops the periodic timer; the first tick comes one period from `now`.
    pub fn set_periodic(&mut self, period: Option<u64>, now: u64) {
        self.periodic = period.map(|period| Periodic { period, next: now.saturating_add(period) });
    }
    /// Sets or removes the time-out of a poll.
    pub fn set_poll(&mut self, deadline: Option<u64>) {
        self.poll = deadline;
    }

    /// Whether a guest could have set them.
    pub fn are_possible(&self) -> bool {
        self.periodic.is_none_or(|periodic| periodic.period >= MIN_PERIOD)
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<u64> {
        let periodic = self.periodic.map(|p| p.next);
        [self.singleshot, periodic, self.poll].into_iter().flatten().min()
    }

    /// Takes what is due at `now`. Several missed periods are one tick, as on Xen.
    pub fn expire(&mut self, now: u64) -> Due {
        let mut due = Due::default();
        if self.singleshot.is_some_and(|t| t <= now) {
            self.singleshot = None;
            due.timer = true;
        }
        if let Some(p) = &mut self.periodic
            && p.next <= now
        {
            let missed = (now - p.next) / p.period;
            p.next = p.next.saturating_add((missed + 1).saturating_mul(p.period));
            due.timer = true;
        }
        if self.poll.is_some_and(|t| t <= now) {
            self.poll = None;
            due.poll = true;
        }
        due
    }
}

/// A domain's two watchdogs (SCHEDOP_watchdog), as deadlines in system time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watchdogs([Option<u64>; 2]);

impl Watchdogs {
    /// A watchdog's deadline, by index; `None` within if it is not in use.
    pub fn deadline(&mut self, index: usize) -> Option<&mut Option<u64>> {
        self.0.get_mut(index)
    }
    /// The first unused watchdog's index.
    pub fn free(&self) -> Option<usize> {
        self.0.iter().position(Option::is_none)
    }
    /// The earliest deadline.
    pub fn next(&self) -> Option<u64> {
        self.0.into_iter().flatten().min()
    }
    /// Whether a deadline has passed at `now`.
    pub fn have_expired(&self, now: u64) -> bool {
        self.next().is_some_and(|deadline| deadline <= now)
    }
}

#[cfg(test)]
mod tests {
    use crate::machine::time::*;
    use proptest::prelude::*;

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for khz in [1_000, 25_000, 999_999, 1_000_000, 2_596_124, 5_000_000] {
            let (mul, shift) = scale(khz);
            let ns = to_ns(khz * 1000, mul, shift);
            assert!(ns.abs_diff(NS_PER_S) <= 10, "{khz} kHz: {ns}");
        }
    }

    #[test]
    fn missed_periods_are_one_tick() {
        let mut t = Timers::default();
        t.set_periodic(Some(MIN_PERIOD), 0);
        assert_eq!(t.next(), Some(MIN_PERIOD));
        assert!(t.expire(10 * MIN_PERIOD + 5).timer);
        assert_eq!(t.next(), Some(11 * MIN_PERIOD));
        assert!(!t.expire(10 * MIN_PERIOD + 6).timer);
    }

    #[test]
    fn a_singleshot_fires_once() {
        let mut t = Timers::default();
        t.set_singleshot(Some(7));
        assert_eq!(t.expire(6), Due::default());
        assert!(t.expire(7).timer);
        assert_eq!(t.expire(100), Due::default());
    }

    proptest! {
        #[test]
        fn scale_terminates_and_is_monotonic(khz in 1u64..20_000_000, a in 0u64..1 << 60, b in 0u64..1 << 60) {
            let (mul, shift) = scale(khz);
            let (a, b) = (a.min(b), a.max(b));
            prop_assume!(shift < 0 || b.leading_zeros() > shift as u32);
            prop_assert!(to_ns(a, mul, shift) <= to_ns(b, mul, shift));
        }
    }
}
