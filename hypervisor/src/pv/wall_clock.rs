//! The wall clock: the date that a guest reads, which stays true when the host's clock is set.
//!
//! A guest reads the date at system time 0 (`wc_*` in the shared page, public/xen.h) and adds its system time. When
//! the host's clock is set, or the host was suspended while the time-stamp counter stood still, that date changes; Xen
//! then writes a new one, and so does this. Nobody tells a program cheaply that the clock was set, so the vCPU's thread
//! looks every [`LOOK_NS`] on its way into the guest, where it knows the system time anyway.
//!
//! What may not be done here: touching the guest's memory.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::machine::time::NS_PER_S;

/// How long a guest may see an old date, in nanoseconds of system time, if it comes to the host at all meanwhile.
pub const LOOK_NS: u64 = NS_PER_S;
/// By how much the host's clock may differ from what the guest reads before that is written anew, in nanoseconds.
/// Slewing by NTP is at most 500 ppm, and NTP steps a clock that is wrong by more than 128 ms.
pub const TOLERANCE_NS: u64 = 100_000_000;

/// Reads a clock: nanoseconds since 1970.
pub type Source = Box<dyn Fn() -> u64 + Send>;

/// The date at system time 0, as a guest reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallTime {
    /// `wc_version`: even, and another one each time. While the rest is written, it is one less.
    pub version: u32,
    /// `wc_sec`.
    pub seconds: u32,
    /// `wc_sec_hi`.
    pub seconds_high: u32,
    /// `wc_nsec`.
    pub nanoseconds: u32,
}

/// What a guest was told, and when to look again.
pub struct WallClock {
    host: Source,
    told_ns: u64,
    version: u32,
    look_at: u64,
}

impl WallClock {
    /// The host's clock, of which nobody was told yet.
    pub fn of_the_host() -> Self {
        Self::new(Box::new(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
        }))
    }

    /// The host's clock, of which the guest was told something else before: `version` was the last.
    pub fn going_on(version: u32) -> Self {
        // The next one is even and larger, whatever a stranger's file says.
        Self { version: version & !1, told_ns: u64::MAX, ..Self::of_the_host() }
    }

    /// The version of what the guest was last told.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The same for any clock.
    pub fn new(host: Source) -> Self {
        Self { host, told_ns: 0, version: 0, look_at: 0 }
    }

    /// What the guest is to be told at system time `now`, if that has changed. To be asked before each entry.
    #[inline]
    pub fn news(&mut self, now: u64) -> Option<WallTime> {
        if now < self.look_at { None } else { self.look(now) }
    }

    #[cold]
    fn look(&mut self, now: u64) -> Option<WallTime> {
        self.look_at = now.saturating_add(LOOK_NS);
        let at_zero = (self.host)().saturating_sub(now);
        if self.version != 0 && at_zero.abs_diff(self.told_ns) <= TOLERANCE_NS {
            return None;
        }
        self.told_ns = at_zero;
        self.version = self.version.wrapping_add(2).max(2);
        let seconds = at_zero / NS_PER_S;
        Some(WallTime {
            version: self.version,
            seconds: (seconds & 0xffff_ffff) as u32,
            seconds_high: (seconds >> 32) as u32,
            nanoseconds: (at_zero % NS_PER_S) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use proptest::prelude::*;

    use crate::pv::wall_clock::*;

    fn injected(start: u64) -> (WallClock, Arc<AtomicU64>) {
        let host = Arc::new(AtomicU64::new(start));
        let read = host.clone();
        (WallClock::new(Box::new(move || read.load(Relaxed))), host)
    }

    #[test]
    fn a_step_is_told_once_and_slewing_not_at_all() {
        let (mut clock, host) = injected(5 * NS_PER_S + 7);
        let told = clock.news(NS_PER_S).unwrap();
        assert_eq!((told.version, told.seconds, told.nanoseconds), (2, 4, 7));
        host.store(6 * NS_PER_S + 7 + TOLERANCE_NS, Relaxed);
        assert_eq!(clock.news(2 * NS_PER_S), None);
        // An hour forward, and seen at the next look.
        host.store(3607 * NS_PER_S, Relaxed);
        assert_eq!(clock.news(3 * NS_PER_S - 1), None);
        let told = clock.news(3 * NS_PER_S).unwrap();
        assert_eq!((told.version, told.seconds), (4, 3604));
        host.store(3608 * NS_PER_S, Relaxed);
        assert_eq!(clock.news(4 * NS_PER_S), None);
        // Backwards.
        host.store(10 * NS_PER_S, Relaxed);
        assert_eq!(clock.news(5 * NS_PER_S).unwrap().seconds, 5);
    }

    proptest! {
        #[test]
        fn the_guest_s_date_is_right_after_each_look(steps in prop::collection::vec((any::<u32>(), any::<u64>()), 1..20)) {
            let (mut clock, host) = injected(0);
            let (mut now, mut told, mut version) = (0u64, 0u128, 0);
            for (elapsed, date) in steps {
                now += LOOK_NS + u64::from(elapsed);
                host.store(date, Relaxed);
                if let Some(news) = clock.news(now) {
                    prop_assert!(news.version % 2 == 0 && news.version > version);
                    prop_assert!(u64::from(news.nanoseconds) < NS_PER_S);
                    version = news.version;
                    let seconds = u64::from(news.seconds) | u64::from(news.seconds_high) << 32;
                    told = u128::from(seconds) * u128::from(NS_PER_S) + u128::from(news.nanoseconds);
                }
                // A date before system time 0 was 1970 cannot be told.
                let right = u128::from(date.max(now));
                prop_assert!((told + u128::from(now)).abs_diff(right) <= u128::from(TOLERANCE_NS));
            }
        }
    }
}
