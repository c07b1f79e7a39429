//! Two recorded comparisons: what changed from the first to the second by more than noise.
//!
//! Each measure of each pair is judged by its runs: a permutation test of ranks, whose p-values are held against each
//! other, so that a long list of equals yields no list of changes (`statistics/permutation.rs`). Counts that are the
//! same in every run have no noise.
//!
//! Files come from anywhere: what does not parse is an error, and names in them are made fit for a terminal where they
//! are shown. What may not be done here: calling something a change because its median moved.

mod recorded;
mod table;

use std::collections::BTreeSet;

use serde::Serialize;

pub use recorded::{Recorded, RecordedError};
pub use table::changes_text;

use self::recorded::{Recording, Technique};
use super::statistics::Spread;
use super::statistics::permutation::{discoveries, p_value};

/// Which share of the changes that are told may be wrong.
const WRONG: f64 = 0.05;
/// From so many runs on, a count that is the same in all of them is taken as one without noise.
const SURE: usize = 3;

/// What changed.
#[derive(Clone, Debug, Serialize)]
pub struct Changes {
    /// Version of this shape.
    pub schema: u32,
    /// The first result's circumstances and the second's, where they differ.
    pub circumstances: Vec<Difference>,
    /// Everything that both have, in the first one's order.
    pub rows: Vec<Change>,
    /// What only the first has: `WORKLOAD by TECHNIQUE`.
    pub only_first: Vec<String>,
    /// What only the second has.
    pub only_second: Vec<String>,
    /// In percent: a median that moved by no more is not called better or worse.
    pub tolerance_percent: f64,
    /// How many runs of each would be enough to tell a single change among so many rows from noise.
    pub runs_wanted: usize,
}

/// A circumstance that is not the same, so that a change may be its doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Which.
    pub what: String,
    /// In the first result.
    pub first: String,
    /// In the second.
    pub second: String,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Nanoseconds for each operation.
    Time,
    /// Cycles of an operation.
    Cycles,
    /// Exits.
    Exits,
}

/// What is said of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Less than before, beyond noise.
    Better,
    /// More than before, beyond noise.
    Worse,
    /// Changed beyond noise, by no more than the tolerance.
    Little,
    /// Noise would explain it.
    Noise,
    /// Too few runs to tell.
    TooFew,
    /// The guests did not do the same work.
    OtherWork,
}

/// One measure of one workload by one technique, in both results.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// The engine that was asked for.
    pub engine: String,
    /// Which workload.
    pub workload: String,
    /// By which technique.
    pub technique: String,
    /// What was measured.
    pub measure: Measure,
    /// The first result's median.
    pub first: f64,
    /// The second's.
    pub second: f64,
    /// How many runs the first has.
    pub first_runs: usize,
    /// How many the second has.
    pub second_runs: usize,
    /// How the first result's runs spread; absent if there is one run.
    pub first_spread: Option<Spread>,
    /// How the second's spread.
    pub second_spread: Option<Spread>,
    /// How much more the second is, in percent of the first; absent if that is 0.
    pub percent: Option<f64>,
    /// How likely a difference as great is by chance.
    pub p_value: f64,
    /// What that means, among so many.
    pub verdict: Verdict,
}

impl Changes {
    /// From `first` to `second`.
    pub fn between(first: &Recorded, second: &Recorded, tolerance_percent: f64) -> Self {
        let mut changes = Self {
            schema: 1,
            circumstances: Vec::new(),
            rows: Vec::new(),
            only_first: Vec::new(),
            only_second: Vec::new(),
            tolerance_percent,
            runs_wanted: 0,
        };
        let pairs = pairs(first, second);
        for (a, b) in &pairs {
            for difference in a.differences(b) {
                if !changes.circumstances.contains(&difference) {
                    changes.circumstances.push(difference);
                }
            }
            changes.add(a, b);
        }
        let paired: (BTreeSet<_>, BTreeSet<_>) =
            pairs.iter().map(|(a, b)| (a.asked.as_str(), b.asked.as_str())).unzip();
        let left = |recorded: &Recorded, paired: &BTreeSet<&str>| -> Vec<String> {
            let engines = recorded.engines.iter().filter(|engine| !paired.contains(engine.asked.as_str()));
            engines.flat_map(Recording::names).collect()
        };
        changes.only_first.extend(left(first, &paired.0));
        changes.only_second.extend(left(second, &paired.1));
        changes.judge();
        changes
    }

    /// Whether anything got worse beyond noise and tolerance.
    pub fn any_worse(&self) -> bool {
        self.count(Verdict::Worse) != 0
    }

    /// How many rows have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }

    fn add(&mut self, a: &Recording, b: &Recording) {
        let (in_a, in_b) = (a.names(), b.names());
        self.only_first.extend(in_a.iter().filter(|name| !b.has(name)).cloned());
        self.only_second.extend(in_b.iter().filter(|name| !a.has(name)).cloned());
        for workload in &a.workloads {
            let Some(other) = b.workloads.iter().find(|w| w.name == workload.name) else { continue };
            for (technique, first) in &workload.techniques {
                let Some(second) = other.techniques.get(technique) else { continue };
                // Operations of the other kinds are repeated as often as there is time for.
                let fixed = ["job", "program"].contains(&workload.kind.as_str());
                let same_work = !fixed || first.ops == second.ops;
                let names = [&a.asked, &workload.name, technique];
                for measure in [Measure::Cycles, Measure::Time, Measure::Exits] {
                    self.rows.extend(Change::of(names, measure, [first, second], same_work));
                }
            }
        }
    }

    /// Holds the p-values against each other.
    fn judge(&mut self) {
        let open = |row: &Change| row.verdict == Verdict::Noise;
        let p_values: Vec<f64> = self.rows.iter().filter(|row| open(row)).map(|row| row.p_value).collect();
        let mut found = discoveries(&p_values, WRONG).into_iter();
        let tolerance = self.tolerance_percent;
        for row in &mut self.rows {
            if row.verdict == Verdict::Noise && found.next() == Some(true) {
                row.verdict = row.direction();
            }
            let little = row.percent.is_some_and(|percent| percent.abs() <= tolerance);
            if little && matches!(row.verdict, Verdict::Better | Verdict::Worse) {
                row.verdict = Verdict::Little;
            }
        }
        let limit = WRONG / p_values.len().max(1) as f64;
        self.runs_wanted = (2..100).find(|runs| least_p(*runs, *runs) <= limit).unwrap_or(100);
    }
}

/// The engines of both, each with its counterpart. Two results of one engine each belong together whatever it was.
fn pairs<'a>(first: &'a Recorded, second: &'a Recorded) -> Vec<(&'a Recording, &'a Recording)> {
    if let ([a], [b]) = (&first.engines[..], &second.engines[..]) {
        return vec![(a, b)];
    }
    let counterpart = |a: &'a Recording| Some((a, second.engines.iter().find(|b| b.asked == a.asked)?));
    first.engines.iter().filter_map(counterpart).collect()
}

/// The least p-value that so many runs can have: 2 of all the ways to divide them, if they are all on their own sides.
fn least_p(a: usize, b: usize) -> f64 {
    (1..=a).fold(2.0, |p, chosen| p * chosen as f64 / (b + chosen) as f64)
}

impl Change {
    fn of(
        [engine, workload, technique]: [&String; 3],
        measure: Measure,
        [first, second]: [&Technique; 2],
        same_work: bool,
    ) -> Option<Self> {
        // A guest that counts cycles repeats the operation as often as it has time for.
        let counts_cycles = [first, second].iter().all(|t| t.runs.iter().all(|run| run.cycles.is_some()));
        if (measure == Measure::Cycles && !counts_cycles) || (measure == Measure::Time && counts_cycles) {
            return None;
        }
        let [a, b] = [first, second].map(|technique| technique.measured(measure));
        let [first, second] = [middle(&a)?, middle(&b)?];
        let exact = measure == Measure::Exits && is_constant(&a) && is_constant(&b);
        let p_value = if exact && first != second { 0.0 } else { p_value(&a, &b) };
        let mut change = Self {
            engine: engine.clone(),
            workload: workload.clone(),
            technique: technique.clone(),
            measure,
            first,
            second,
            first_runs: a.len(),
            second_runs: b.len(),
            first_spread: Spread::of(&a),
            second_spread: Spread::of(&b),
            percent: (first != 0.0).then(|| 100.0 * (second - first) / first),
            p_value,
            verdict: Verdict::Noise,
        };
        if !same_work {
            change.verdict = Verdict::OtherWork;
        } else if p_value == 0.0 {
            change.verdict = change.direction();
        } else if !exact && least_p(a.len(), b.len()) > WRONG {
            change.verdict = Verdict::TooFew;
        }
        Some(change)
    }

    fn direction(&self) -> Verdict {
        match self.second.total_cmp(&self.first) {
            std::cmp::Ordering::Less => Verdict::Better,
            std::cmp::Ordering::Greater => Verdict::Worse,
            std::cmp::Ordering::Equal => Verdict::Little,
        }
    }
}

/// Whether a count is the same in all of enough runs.
fn is_constant(runs: &[f64]) -> bool {
    runs.len() >= SURE && runs.windows(2).all(|two| matches!(two, [a, b] if a == b))
}

fn middle(measured: &[f64]) -> Option<f64> {
    let mut sorted = measured.to_vec();
    sorted.sort_by(f64::total_cmp);
    super::statistics::median(&sorted)
}

#[cfg(test)]
mod tests;
