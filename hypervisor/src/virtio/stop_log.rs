//! Devices that stopped for what their drivers did: counted, and told to the user.
//!
//! A driver can reset its device and break it again as fast as the host stops it, so each device is told of a few
//! times in a while ([`MOST`], [`WHILE`]) and counted always. Nothing here is touched by a device that works:
//! recording, formatting and telling are done when a worker ends, by its thread.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::violation::Offence;

/// How many stops of one device are told in [`WHILE`].
pub(super) const MOST: usize = 5;
const WHILE: Duration = Duration::from_secs(60);

/// A stop as it is told.
#[derive(Clone, Copy, Debug)]
pub struct Stopped<'a> {
    /// What the user calls the device: `disk 0 (root.img)`.
    pub device: &'a str,
    /// Why.
    pub offence: Offence,
    /// How many stops of it before this one were not told.
    pub untold: u64,
}

impl fmt::Display for Stopped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, offence, untold } = self;
        write!(f, "virtio {device}: {offence}; the device is stopped until the guest resets it")?;
        if *untold > 0 {
            write!(f, " (and was {untold} times before without a word)")?;
        }
        Ok(())
    }
}

/// Tells the user of a stop. Called by a device's thread; a bare guest's vCPU where a device could not start.
pub type Tell = Arc<dyn Fn(&Stopped<'_>) + Send + Sync>;

/// What a run's report says of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceStops {
    /// What the user calls it.
    pub device: String,
    /// How often it stopped.
    pub stops: u64,
    /// Why it stopped last.
    pub last: Option<String>,
    /// How many of the stops were not told since the last that was.
    #[serde(skip)]
    pub untold: u64,
}

/// The account of one device.
#[derive(Default)]
pub(super) struct Stops {
    record: Mutex<Record>,
    audience: OnceLock<(String, Tell)>,
}

/// A stop that was counted: if it is to be told, how many before it were not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorded(Option<u64>);

#[derive(Default)]
struct Record {
    count: u64,
    last: Option<Offence>,
    /// When the last ones were told, in a ring.
    told: [Option<Instant>; MOST],
    next: usize,
    untold: u64,
}

impl Record {
    /// Whether a stop at `now` is told: how many before it were not.
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
    /// Counts a stop if `is_first`, which is asked under the lock: who sees that the device is broken can see why.
    /// What is returned is to be [told](Self::tell) once the guest has been told.
    pub(super) fn record(&self, offence: Offence, is_first: impl FnOnce() -> bool) -> Option<Recorded> {
        let mut record = self.lock();
        if !is_first() {
            return None;
        }
        record.count = record.count.saturating_add(1);
        record.last = Some(offence);
        // Where nobody listens, nobody is told too often.
        Some(Recorded(self.audience.get().and_then(|_| record.admit(Instant::now()))))
    }
    /// Tells of a stop, if it is to be told.
    pub(super) fn tell(&self, offence: Offence, Recorded(untold): Recorded) {
        if let (Some((device, tell)), Some(untold)) = (self.audience.get(), untold) {
            tell(&Stopped { device, offence, untold });
        }
    }
    /// Who is to be told, and what to call the device; the first one stays.
    pub(super) fn set_audience(&self, name: String, tell: Tell) {
        self.audience.get_or_init(|| (name, tell));
    }
    /// What the driver did last.
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
    fn a_few_are_told_in_a_while_and_all_are_counted() {
        let (mut record, start) = (Record::default(), Instant::now());
        let told = |record: &mut Record, seconds| record.admit(start + Duration::from_secs(seconds));
        for second in [0, 0, 1, 1, 20] {
            assert_eq!(told(&mut record, second), Some(0));
        }
        for second in [20, 30, 59] {
            assert_eq!(told(&mut record, second), None, "the sixth in a minute");
        }
        assert_eq!(told(&mut record, 60), Some(3), "the first two are long past");
        assert_eq!(told(&mut record, 60), Some(0));
        assert_eq!(told(&mut record, 60), None);
        assert_eq!(told(&mut record, 3600), Some(1));
    }

    #[test]
    fn what_was_not_told_is_made_up_for() {
        let offence = Offence { queue: None, what: Broken::Ahead };
        let text = Stopped { device: "disk 1 (a.img)", offence, untold: 9 }.to_string();
        let end = "the device is stopped until the guest resets it (and was 9 times before without a word)";
        assert_eq!(text, format!("virtio disk 1 (a.img): the available index runs ahead of the ring; {end}"));
    }
}
