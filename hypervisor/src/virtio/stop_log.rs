//! Counts and reports the stops of one device because of violations by its driver.
//!
//! A driver can reset its device and break it again in a loop. So all stops are counted, but at most [`MOST`] are
//! reported within [`WHILE`]. A device that works does not use any of this: a worker's thread records, formats and
//! reports when it ends.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::violation::Offence;

/// Stops of one device at most that are reported within [`WHILE`].
pub(super) const MOST: usize = 5;
const WHILE: Duration = Duration::from_secs(60);

/// A stop to be reported.
#[derive(Clone, Copy, Debug)]
pub struct Stopped<'a> {
    /// The device's name: `disk 0 (root.img)`.
    pub device: &'a str,
    /// Why.
    pub offence: Offence,
    /// How many stops before this one were not reported.
    pub untold: u64,
}

impl fmt::Display for Stopped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, offence, untold } = self;
        write!(f, "virtio {device}: {offence}; the device is stopped until the guest resets it")?;
        if *untold > 0 {
            write!(f, " ({untold} earlier stops were not reported)")?;
        }
        Ok(())
    }
}

/// Reports a stop to the user. Called by a device's thread; by a bare guest's vCPU if the device could not start.
pub type Tell = Arc<dyn Fn(&Stopped<'_>) + Send + Sync>;

/// The stops of one device, in the report of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceStops {
    /// The device's name.
    pub device: String,
    /// How often it stopped.
    pub stops: u64,
    /// Why it stopped last.
    pub last: Option<String>,
    /// How many stops have not been reported since the last one that was.
    #[serde(skip)]
    pub untold: u64,
}

/// The log of one device.
#[derive(Default)]
pub(super) struct Stops {
    record: Mutex<Record>,
    audience: OnceLock<(String, Tell)>,
}

/// A stop that was counted. If it is to be reported: the number of unreported stops before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorded(Option<u64>);

#[derive(Default)]
struct Record {
    count: u64,
    last: Option<Offence>,
    /// Times of the last reports: a ring buffer.
    told: [Option<Instant>; MOST],
    next: usize,
    untold: u64,
}

impl Record {
    /// The number of unreported stops before one at `now`, if that is to be reported.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let oldest = self.told.get_mut(self.next)?;
        if oldest.is_some_and(|then| now.saturating_duration_since(then) < WHILE) {
            self.untold = self.untold.saturating_add(1);
            return None;
        }
        *oldest = Some(now);
        self.next = (self.next + 1) % MOST;
        Some(std::mem::take(&mut self.untold))
    }
}

impl Stops {
    /// Counts a stop if `is_first`, which is called under the lock: a thread that sees that the device is broken also
    /// sees why. The caller notifies the guest and then calls [`Stops::tell`] with the result.
    pub(super) fn record(&self, offence: Offence, is_first: impl FnOnce() -> bool) -> Option<Recorded> {
        let mut record = self.lock();
        if !is_first() {
            return None;
        }
        record.count = record.count.saturating_add(1);
        record.last = Some(offence);
        // Without an audience, nothing counts against the limit.
        Some(Recorded(self.audience.get().and_then(|_| record.admit(Instant::now()))))
    }
    /// Reports a stop, if it is to be reported.
    pub(super) fn tell(&self, offence: Offence, Recorded(untold): Recorded) {
        if let (Some((device, tell)), Some(untold)) = (self.audience.get(), untold) {
            tell(&Stopped { device, offence, untold });
        }
    }
    /// Sets the device's name and the function that reports; later calls have no effect.
    pub(super) fn set_audience(&self, name: String, tell: Tell) {
        self.audience.get_or_init(|| (name, tell));
    }
    /// The last violation.
    pub(super) fn last(&self) -> Option<Offence> {
        self.lock().last
    }

    pub(super) fn report(&self, device: String) -> DeviceStops {
        let record = self.lock();
        let last = record.last.map(|offence| offence.to_string());
        DeviceStops { device, stops: record.count, last, untold: record.untold }
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use crate::virtio::stop_log::*;
    use crate::virtio::violation::Broken;

    #[test]
    fn reports_are_limited_and_all_stops_are_counted() {
        let (mut record, start) = (Record::default(), Instant::now());
        let told = |record: &mut Record, seconds| record.admit(start + Duration::from_secs(seconds));
        for second in [0, 0, 1, 1, 20] {
            assert_eq!(told(&mut record, second), Some(0));
        }
        for second in [20, 30, 59] {
            assert_eq!(told(&mut record, second), None, "the sixth in a minute");
        }
        assert_eq!(told(&mut record, 60), Some(3), "the first two were a minute ago");
        assert_eq!(told(&mut record, 60), Some(0));
        assert_eq!(told(&mut record, 60), None);
        assert_eq!(told(&mut record, 3600), Some(1));
    }

    #[test]
    fn the_next_report_counts_stops_that_were_not_reported() {
        let offence = Offence { queue: None, what: Broken::Ahead };
        let text = Stopped { device: "disk 1 (a.img)", offence, untold: 9 }.to_string();
        let end = "the device is stopped until the guest resets it (9 earlier stops were not reported)";
        assert_eq!(text, format!("virtio disk 1 (a.img): the available index runs ahead of the ring; {end}"));
    }
}
