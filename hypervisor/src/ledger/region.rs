//! What a ledger says once the guest has stopped: rows that can be shown, compared and exported.

use serde::{Serialize, Serializer};

use super::batch::{BatchSizes, Batches};
use super::cause::Cause;
use super::histogram;
use super::tally::{Tallies, Tally};
use super::work::{Amounts, WorkRow};

/// The exits of one cause.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExitRow {
    /// Why.
    #[serde(serialize_with = "as_name")]
    pub cause: Cause,
    /// The kind of exit that it belongs to.
    pub group: &'static str,
    /// How many.
    pub count: u64,
    /// Nanoseconds that the host spent on them.
    pub ns: u64,
    /// The shortest.
    pub min_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// The mean.
    pub avg_ns: f64,
    /// The sample standard deviation.
    pub stddev_ns: f64,
    /// The standard error of the mean, in percent of it.
    pub error_percent: f64,
    /// Half of them took at most this, to one part in eight.
    pub p50_ns: u64,
    /// 9 of 10 took at most this, to one part in eight.
    pub p90_ns: u64,
    /// 99 of 100 took at most this, to one part in eight.
    pub p99_ns: u64,
    /// (highest time, count) of every bucket that is not empty.
    pub histogram: Vec<(u64, u64)>,
}

/// What happened in one span of a domain's life.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Region {
    /// How long it lasted, in nanoseconds of wall time.
    pub ns: u64,
    /// Its exits by cause, the most time-consuming first.
    pub exits: Vec<ExitRow>,
    /// Its batches by kind.
    pub batches: Vec<BatchSizes>,
    /// What is no exit, by kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub work: Vec<WorkRow>,
}

impl Region {
    pub(super) fn new(ns: u64, tallies: &Tallies, batches: &Batches, work: &Amounts) -> Self {
        let mut exits: Vec<ExitRow> = tallies.occupied().map(|(c, t, h)| ExitRow::new(c, t, h)).collect();
        exits.sort_by_key(|row| (std::cmp::Reverse((row.ns, row.count)), row.cause.index()));
        Self { ns, exits, batches: batches.occupied(), work: work.occupied() }
    }

    /// How many times the guest left the CPU.
    pub fn traps(&self) -> u64 {
        self.exits.iter().map(|row| row.count).sum()
    }

    /// Nanoseconds that the host worked on exits.
    pub fn handling_ns(&self) -> u64 {
        self.exits.iter().fold(0, |sum, row| sum.saturating_add(row.ns))
    }
}

impl ExitRow {
    fn new(cause: Cause, tally: &Tally, counts: &[u64]) -> Self {
        let percentile = |p| histogram::percentile(counts, p).clamp(tally.min_ns, tally.max_ns);
        Self {
            cause,
            group: cause.group(),
            count: tally.count,
            ns: tally.ns,
            min_ns: tally.min_ns,
            max_ns: tally.max_ns,
            avg_ns: tally.mean_ns(),
            stddev_ns: tally.stddev_ns(),
            error_percent: tally.error_percent(),
            p50_ns: percentile(50.0),
            p90_ns: percentile(90.0),
            p99_ns: percentile(99.0),
            histogram: histogram::occupied(counts),
        }
    }
}

fn as_name<S: Serializer>(cause: &Cause, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(cause)
}

#[cfg(test)]
mod tests {
    use super::super::{BatchKind, Ledger, PrivOp};
    use super::*;

    #[test]
    fn the_costliest_exit_comes_first() {
        let mut ledger = Ledger::new();
        ledger.record(Cause::Kick, 10);
        ledger.record(Cause::Kick, 10);
        ledger.record(Cause::PrivilegedInstruction(PrivOp::Cli), 500);
        let causes: Vec<Cause> = ledger.whole(0).exits.iter().map(|r| r.cause).collect();
        assert_eq!(causes, [Cause::PrivilegedInstruction(PrivOp::Cli), Cause::Kick]);
    }

    #[test]
    fn the_exported_shape_is_stable() {
        let mut ledger = Ledger::new();
        ledger.record(Cause::Hypercall(1), 6);
        ledger.batch(BatchKind::MmuUpdate, 2);
        let json = serde_json::to_value(ledger.whole(9)).unwrap();
        let expected = serde_json::json!({
            "ns": 9,
            "exits": [{
                "cause": "hypercall mmu_update", "group": "hypercall", "count": 1, "ns": 6,
                "min_ns": 6, "max_ns": 6, "avg_ns": 6.0, "stddev_ns": 0.0, "error_percent": 0.0,
                "p50_ns": 6, "p90_ns": 6, "p99_ns": 6, "histogram": [[6, 1]],
            }],
            "batches": [{
                "kind": "entries per mmu_update", "batches": 1, "requests": 2, "median": 2, "max": 2,
                "histogram": [[2, 1]],
            }],
        });
        assert_eq!(json, expected);
    }
}
