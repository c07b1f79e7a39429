//! Several engines side by side: one comparison each, and where their trap counts differ.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::comparison::Comparison;
use super::host::HostFacts;
use super::result::TechniqueResult;
use crate::technique::EngineNeed;

/// The comparisons of several engines, made in one run.
#[derive(Clone, Debug, Serialize)]
pub struct SideBySide {
    /// Version of this shape.
    pub schema: u32,
    /// Version of this program.
    pub version: &'static str,
    /// Whether it was built without optimization: its times then mean little.
    pub debug_build: bool,
    /// The machine.
    pub host: HostFacts,
    /// How often each was measured.
    pub repeat: usize,
    /// One whole comparison for each engine, in the shape that one engine alone has.
    pub engines: Vec<Comparison>,
    /// Engines that cannot be used here, and why; only those that nobody asked for by name.
    pub left_out: Vec<LeftOut>,
    /// Where the same work needed different numbers of traps.
    pub trap_differences: Vec<TrapDifference>,
    /// What the numbers do not mean.
    pub notes: &'static [&'static str],
}

/// An engine that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub engine: &'static str,
    /// Why.
    pub why: String,
}

/// Different trap counts for the same work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrapDifference {
    /// Which workload.
    pub workload: &'static str,
    /// By which technique.
    pub technique: &'static str,
    /// Traps by engine.
    pub traps: BTreeMap<&'static str, u64>,
    /// The causes whose counts differ: how many by engine.
    pub causes: BTreeMap<String, BTreeMap<&'static str, u64>>,
}

impl SideBySide {
    /// Of what [`compare`](super::compare()) returned. With `only_usable`, engines on which no guest could be
    /// started are left out instead of being failures; nothing if there is no comparison.
    pub fn new(comparisons: Vec<Comparison>, only_usable: bool) -> Option<Self> {
        let first = comparisons.first()?;
        let (version, debug_build) = (first.version, first.debug_build);
        let (host, repeat, notes) = (first.host.clone(), first.repeat, first.notes);
        let (engines, unusable): (Vec<_>, Vec<_>) =
            comparisons.into_iter().partition(|c| c.started || !only_usable);
        let left_out = unusable.iter().map(LeftOut::of).collect();
        let trap_differences = differences(&engines);
        Some(Self {
            schema: 1,
            version,
            debug_build,
            host,
            repeat,
            engines,
            left_out,
            trap_differences,
            notes,
        })
    }

    /// Whether there is an engine and every result is right on every engine.
    pub fn ok(&self) -> bool {
        !self.engines.is_empty() && self.engines.iter().all(Comparison::ok)
    }
}

impl LeftOut {
    fn of(comparison: &Comparison) -> Self {
        let why = comparison.workloads.iter().find_map(|w| w.problems.first());
        Self {
            engine: comparison.asked,
            why: why.cloned().unwrap_or_else(|| "nothing was measured".to_owned()),
        }
    }
}

/// What the engines' results for one workload and technique are, by engine.
pub(super) fn results<'a>(
    engines: &'a [Comparison],
    workload: &str,
    technique: &str,
) -> Vec<(&'static str, &'a TechniqueResult)> {
    let result = |c: &'a Comparison| Some((c.asked, c.result(workload, technique)?));
    engines.iter().filter_map(result).collect()
}

fn differences(engines: &[Comparison]) -> Vec<TrapDifference> {
    let Some(first) = engines.first() else { return Vec::new() };
    let mut found = Vec::new();
    for workload in &first.workloads {
        for &technique in &first.techniques {
            let mut results = results(engines, workload.name, technique);
            // A technique that does not run on the engines was measured once.
            results.retain(|(_, result)| result.need == EngineNeed::Deprivileged);
            found.extend(TrapDifference::of(workload.name, technique, &results));
        }
    }
    found
}

impl TrapDifference {
    fn of(
        workload: &'static str,
        technique: &'static str,
        results: &[(&'static str, &TechniqueResult)],
    ) -> Option<Self> {
        let all: BTreeSet<_> =
            results.iter().flat_map(|(_, r)| &r.exits).map(|row| row.cause.to_string()).collect();
        let count = |result: &TechniqueResult, cause: &str| {
            let row = result.exits.iter().find(|row| row.cause.to_string() == cause);
            row.map_or(0, |row| row.count)
        };
        let by_engine = |f: &dyn Fn(&TechniqueResult) -> u64| -> BTreeMap<_, _> {
            results.iter().map(|(engine, result)| (*engine, f(result))).collect()
        };
        let differ = |counts: &BTreeMap<_, u64>| counts.values().collect::<BTreeSet<_>>().len() > 1;
        let causes: BTreeMap<_, _> = all
            .into_iter()
            .map(|cause| (by_engine(&|r| count(r, &cause)), cause))
            .filter(|(counts, _)| differ(counts))
            .map(|(counts, cause)| (cause, counts))
            .collect();
        let traps = by_engine(&|r| r.traps);
        (!causes.is_empty()).then_some(Self { workload, technique, traps, causes })
    }
}

#[cfg(test)]
mod tests;
