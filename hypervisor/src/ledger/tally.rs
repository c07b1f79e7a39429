//! Count, time, extremes and histogram of each cause, in arrays that recording never grows.

use super::cause::Cause;
use super::histogram::{self, BUCKETS};

/// What is known of the exits of one cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many there were.
    pub count: u64,
    /// Nanoseconds that the host spent on them.
    pub ns: u64,
    /// The shortest; 0 when there were none.
    pub min_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Sum of the squares, exact, for the deviation.
    square_ns: u128,
}

impl Tally {
    /// Adds one exit that took `ns`.
    pub fn add(&mut self, ns: u64) {
        self.merge(&Self {
            count: 1,
            ns,
            min_ns: ns,
            max_ns: ns,
            square_ns: u128::from(ns) * u128::from(ns),
        });
    }

    /// Adds what another tally holds.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        self.min_ns = if self.count == 0 { other.min_ns } else { self.min_ns.min(other.min_ns) };
        self.max_ns = self.max_ns.max(other.max_ns);
        self.count += other.count;
        self.ns = self.ns.saturating_add(other.ns);
        self.square_ns = self.square_ns.saturating_add(other.square_ns);
    }

    /// The mean, in nanoseconds; 0 when there were none.
    pub fn mean_ns(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.ns as f64 / self.count as f64 }
    }

    /// The sample standard deviation, in nanoseconds; 0 for fewer than two exits.
    pub fn stddev_ns(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let n = u128::from(self.count);
        let total = u128::from(self.ns);
        // n * sum(x^2) - sum(x)^2 is exact in integers as long as it fits; floats would cancel here.
        let spread = match n.checked_mul(self.square_ns).zip(total.checked_mul(total)) {
            Some((a, b)) => a.saturating_sub(b) as f64,
            None => n as f64 * self.square_ns as f64 - (total as f64) * (total as f64),
        };
        (spread.max(0.0) / (n as f64 * (n - 1) as f64)).sqrt()
    }

    /// The standard error of the mean, in percent of the mean: the "+-" of `perf stat`.
    pub fn error_percent(&self) -> f64 {
        let mean = self.mean_ns();
        if mean == 0.0 { 0.0 } else { 100.0 * self.stddev_ns() / (self.count as f64).sqrt() / mean }
    }
}

/// A tally and a histogram for every cause.
#[derive(Clone, Debug)]
pub(super) struct Tallies {
    tallies: Box<[Tally; Cause::COUNT]>,
    /// `Cause::COUNT` histograms in a row.
    histograms: Box<[u64]>,
}

impl Default for Tallies {
    fn default() -> Self {
        Self {
            tallies: Box::new([Tally::default(); Cause::COUNT]),
            histograms: vec![0; Cause::COUNT * BUCKETS].into_boxed_slice(),
        }
    }
}

impl Tallies {
    pub(super) fn record(&mut self, cause: Cause, ns: u64) {
        let i = cause.index();
        self.tallies[i].add(ns);
        self.histograms[i * BUCKETS + histogram::bucket(ns)] += 1;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (a, b) in self.tallies.iter_mut().zip(other.tallies.iter()) {
            a.merge(b);
        }
        for (a, b) in self.histograms.iter_mut().zip(other.histograms.iter()) {
            *a += b;
        }
    }

    pub(super) fn total_count(&self) -> u64 {
        self.tallies.iter().map(|t| t.count).sum()
    }

    /// Cause, tally and histogram of whatever happened at all.
    pub(super) fn occupied(&self) -> impl Iterator<Item = (Cause, &Tally, &[u64])> {
        Cause::all()
            .zip(self.tallies.iter().zip(self.histograms.chunks_exact(BUCKETS)))
            .filter(|(_, (tally, _))| tally.count != 0)
            .map(|(cause, (tally, histogram))| (cause, tally, histogram))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(values: &[u64]) -> Tally {
        let mut t = Tally::default();
        values.iter().for_each(|v| t.add(*v));
        t
    }

    #[test]
    fn statistics_of_a_known_sample() {
        let t = tally(&[2, 4, 4, 4, 5, 5, 7, 9]);
        assert_eq!((t.count, t.ns, t.min_ns, t.max_ns), (8, 40, 2, 9));
        assert_eq!(t.mean_ns(), 5.0);
        assert!((t.stddev_ns() - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
        let error = 100.0 * (32.0f64 / 7.0).sqrt() / 8f64.sqrt() / 5.0;
        assert!((t.error_percent() - error).abs() < 1e-9);
    }

    #[test]
    fn nothing_and_one_have_no_deviation() {
        assert_eq!((tally(&[]).mean_ns(), tally(&[]).error_percent()), (0.0, 0.0));
        assert_eq!((tally(&[7]).min_ns, tally(&[7]).stddev_ns()), (7, 0.0));
    }

    #[test]
    fn close_large_values_do_not_cancel() {
        let base = 1 << 40;
        let t = tally(&[base, base + 1, base + 2]);
        assert!((t.stddev_ns() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn merging_is_recording_both() {
        let mut a = tally(&[3, 9]);
        a.merge(&tally(&[1, 5]));
        a.merge(&tally(&[]));
        assert_eq!(a, tally(&[3, 9, 1, 5]));
    }

    #[test]
    fn absurd_times_saturate() {
        let mut t = Tallies::default();
        t.record(Cause::Kick, u64::MAX);
        t.record(Cause::Kick, u64::MAX);
        let (_, tally, histogram) = t.occupied().next().unwrap();
        assert_eq!((tally.count, tally.ns, histogram[BUCKETS - 1]), (2, u64::MAX, 2));
        assert!(tally.stddev_ns().is_finite());
    }
}
