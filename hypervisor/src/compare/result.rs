//! What a workload's runs amount to: each technique's median run, and what it saves over the baseline.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::comparison::Settings;
use super::native::Natively;
use super::native_program::NativeRun;
use super::sample::{Failure, Sample};
use super::statistics::Spread;
use super::{Kind, Workload};
use crate::engine::EngineInfo;
use crate::ledger::{BatchSizes, ExitRow, HardwareExits, WorkRow};
use crate::technique::{EngineNeed, Technique};

/// The runs of one workload, by technique.
pub(super) type Runs = Vec<(&'static Technique, Vec<Result<Sample, Failure>>)>;

/// The engine, for the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineFacts {
    /// "kvm" or "process", for example.
    pub name: &'static str,
    /// How hypercalls enter the host.
    pub transport: &'static str,
    /// The host's side.
    pub detail: String,
}

/// One workload by every technique.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadResult {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// What is learned from it.
    pub kind: Kind,
    /// Whether every technique did the same amount of work, with right results.
    pub ok: bool,
    /// What is wrong, if anything is.
    pub problems: Vec<String>,
    /// Which techniques could not do it, and why. That is not a failure, but then they are not compared.
    pub skipped: Vec<String>,
    /// Name and result of each technique.
    #[serde(serialize_with = "as_map")]
    pub techniques: Vec<(&'static str, TechniqueResult)>,
    /// Traps that the first technique besides the baseline saves.
    pub traps_saved: Option<Saving>,
    /// Nanoseconds that it saves.
    pub time_saved: Option<Saving>,
    /// What each technique saves, by its name.
    pub savings: BTreeMap<&'static str, Saved>,
    /// What this host's processor needs without any technique, in this process; absent where there is no such code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native: Option<Cycles>,
    /// What this host's kernel does with the same program, without any guest; absent where it is no program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native_program: Option<NativeRun>,
    /// Why this host does not run the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native_missing: Option<String>,
    /// By technique, what could not be done and why.
    #[serde(skip)]
    pub(super) not_done: Vec<(&'static str, NotDone)>,
}

/// Why a technique has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotDone {
    /// It failed.
    Failed,
    /// It could not be done, for this reason.
    Lacking(String),
}

/// What a technique saves over the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Saved {
    /// Traps.
    pub traps: Saving,
    /// Nanoseconds between the marks.
    pub time: Saving,
}

/// A difference; negative if more was needed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Saving {
    /// How much less.
    pub saved: i64,
    /// The same in percent of what the other technique needed; absent if that was nothing.
    pub percent: Option<f64>,
}

/// Cycles of an operation by the time-stamp counter, without its loop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cycles {
    /// The median of the rounds.
    pub median: f64,
    /// The fastest round.
    pub min: f64,
}

/// One technique's median run, and all of its runs.
#[derive(Clone, Debug, Serialize)]
pub struct TechniqueResult {
    /// Whether every run succeeded.
    pub ok: bool,
    /// Operations that the guest did.
    pub ops: u64,
    /// Exits between the marks.
    pub traps: u64,
    /// Wall time between the marks, in nanoseconds.
    pub ns: u64,
    /// The part of it that the hypervisor worked.
    pub host_ns: u64,
    /// What ran it.
    pub engine: EngineFacts,
    /// What an operation took by the guest's own clock, where the guest counts cycles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycles: Option<Cycles>,
    /// Exits by cause.
    pub exits: Vec<ExitRow>,
    /// The same by the processor's names, where the guest's kernel ran at CPL 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<HardwareExits>,
    /// Batches by kind.
    pub batches: Vec<BatchSizes>,
    /// What is no exit, by kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub work: Vec<WorkRow>,
    /// How often the guest flushed its queue of hypercalls, by reason; empty if it has none.
    pub flushes: BTreeMap<String, u64>,
    /// The whole boot, of which the rest is a part.
    pub whole: WholeBoot,
    /// What else the guest said.
    pub details: BTreeMap<String, String>,
    /// Every run, in order.
    pub runs: Vec<RunFigures>,
    /// How the runs' times spread, in nanoseconds; absent where there is one run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// What the technique needs of an engine.
    #[serde(skip)]
    pub(super) need: EngineNeed,
}

/// What is counted of a boot from its beginning to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WholeBoot {
    /// Exits that reached us.
    pub traps: u64,
    /// What the host's kernel counted, by its own names, exits that it handled alone included; empty where it
    /// does not count.
    pub kernel_statistics: Vec<(String, u64)>,
}

/// The raw figures of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunFigures {
    /// Exits between the marks.
    pub traps: u64,
    /// Wall time between the marks, in nanoseconds.
    pub ns: u64,
    /// The part of it that the hypervisor worked.
    pub host_ns: u64,
    /// The median of the operation's cycles, where the guest counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycles: Option<f64>,
}

impl EngineFacts {
    pub(super) fn of(info: &EngineInfo) -> Self {
        Self { name: info.name, transport: info.transport, detail: info.detail.clone() }
    }
}

impl WorkloadResult {
    pub(super) fn of(workload: &Workload, runs: Runs, natively: &Natively, settings: &Settings) -> Self {
        let Workload { name, about, kind, .. } = *workload;
        let mut result = Self {
            name,
            about,
            kind,
            ok: true,
            problems: Vec::new(),
            skipped: Vec::new(),
            techniques: Vec::new(),
            traps_saved: None,
            time_saved: None,
            savings: BTreeMap::new(),
            native: natively.cycles(),
            native_program: natively.program(),
            native_missing: natively.missing(),
            not_done: Vec::new(),
        };
        for (technique, samples) in runs {
            result.add(technique, samples);
        }
        result.savings = result.savings_over(settings.baseline);
        let first = settings.techniques.iter().map(|t| t.name).find(|name| *name != settings.baseline);
        let first = first.and_then(|name| result.savings.get(name).copied());
        result.traps_saved = first.map(|saved| saved.traps);
        result.time_saved = first.map(|saved| saved.time);
        result.ok = result.problems.is_empty();
        result
    }

    fn add(&mut self, technique: &Technique, samples: Vec<Result<Sample, Failure>>) {
        let (good, bad): (Vec<_>, Vec<_>) = samples.into_iter().partition(Result::is_ok);
        let ok = bad.is_empty();
        for failure in bad.into_iter().filter_map(Result::err) {
            let lacking = failure.is_lack();
            let list = if lacking { &mut self.skipped } else { &mut self.problems };
            let line = format!("{}: {failure}", technique.name);
            if list.contains(&line) {
                continue;
            }
            list.push(line);
            let what = if lacking { NotDone::Lacking(failure.to_string()) } else { NotDone::Failed };
            self.not_done.push((technique.name, what));
        }
        let good = good.into_iter().filter_map(Result::ok).collect();
        let result = TechniqueResult::of(good, ok, technique.engine);
        self.techniques.extend(result.map(|result| (technique.name, result)));
    }

    /// What a technique did, if it did anything.
    pub(super) fn result(&self, technique: &str) -> Option<&TechniqueResult> {
        self.techniques.iter().find(|(name, _)| *name == technique).map(|(_, result)| result)
    }

    /// Whether a technique was to do it and failed.
    pub(super) fn failed(&self, technique: &str) -> bool {
        self.not_done.iter().any(|(name, why)| *name == technique && *why == NotDone::Failed)
    }

    /// What each technique saves over the baseline; what cannot be compared is a problem.
    fn savings_over(&mut self, baseline: &'static str) -> BTreeMap<&'static str, Saved> {
        let Some((b, other)) = self.techniques.iter().find(|(name, _)| *name == baseline) else {
            return BTreeMap::new();
        };
        let mut saved = BTreeMap::new();
        for (a, result) in self.techniques.iter().filter(|(name, _)| name != b) {
            if let Some(problem) = result.not_comparable(other, self.kind) {
                self.problems.push(format!("{a} {} {b} {}: not comparable", problem.0, problem.1));
            } else if result.ok && other.ok && result.ops == other.ops {
                let traps = Saving::of(result.traps, other.traps);
                saved.insert(*a, Saved { traps, time: Saving::of(result.ns, other.ns) });
            }
        }
        saved
    }
}

impl TechniqueResult {
    /// Of the runs that succeeded; nothing if none did.
    fn of(samples: Vec<Sample>, ok: bool, need: EngineNeed) -> Option<Self> {
        let runs: Vec<RunFigures> = samples.iter().map(RunFigures::of).collect();
        let mut by_time: Vec<usize> = (0..samples.len()).collect();
        by_time.sort_by_key(|i| runs.get(*i).map(|run| run.ns));
        // Of an even number the lower of the two in the middle, so that it is a run that took place.
        let median = *by_time.get(samples.len().checked_sub(1)? / 2)?;
        let sample = samples.into_iter().nth(median)?;
        let engine = EngineFacts::of(&sample.engine);
        let hardware = sample.engine.hardware.map(|by| HardwareExits::of(&sample.region, by));
        let Sample { outcome, region, whole_traps, kernel_statistics, .. } = sample;
        Some(Self {
            ok,
            ops: outcome.ops,
            traps: region.traps(),
            ns: region.ns,
            host_ns: region.handling_ns(),
            engine,
            cycles: Cycles::said(&outcome.details),
            exits: region.exits,
            hardware,
            batches: region.batches,
            work: region.work,
            flushes: outcome.flushes,
            whole: WholeBoot { traps: whole_traps, kernel_statistics },
            details: outcome.details,
            spread: Spread::of(&runs.iter().map(|run| run.ns as f64).collect::<Vec<_>>()),
            runs,
            need,
        })
    }

    /// Nanoseconds for each operation.
    pub(super) fn each_ns(&self) -> f64 {
        self.ns as f64 / self.ops.max(1) as f64
    }

    /// Exits for each operation.
    pub(super) fn each_traps(&self) -> f64 {
        self.traps as f64 / self.ops.max(1) as f64
    }

    /// How often the other's time goes into this one's, operation by operation.
    pub(super) fn ratio(&self, other: &Self) -> Option<f64> {
        (other.ns != 0).then(|| self.each_ns() / other.each_ns())
    }

    /// Why two techniques cannot be compared, in words for each of them.
    fn not_comparable(&self, other: &Self, kind: Kind) -> Option<(String, String)> {
        // A guest that repeats an operation does so as often as it has time for.
        if matches!(kind, Kind::Job | Kind::Program) && self.ops != other.ops {
            return Some((format!("did {} operations,", self.ops), other.ops.to_string()));
        }
        let shared = [self, other].iter().all(|result| result.need == EngineNeed::Deprivileged);
        let different = shared && self.engine != other.engine;
        different
            .then(|| (format!("ran on engine {},", self.engine.name), format!("on {}", other.engine.name)))
    }
}

impl Cycles {
    /// Of hundredths.
    pub(super) fn of_hundredths(median: u64, min: u64) -> Self {
        Self { median: median as f64 / 100.0, min: min as f64 / 100.0 }
    }

    /// What a guest says.
    fn said(details: &BTreeMap<String, String>) -> Option<Self> {
        let number = |key: &str| details.get(key)?.parse().ok();
        Some(Self::of_hundredths(number("cycles-x100-median")?, number("cycles-x100-min")?))
    }
}

impl RunFigures {
    fn of(sample: &Sample) -> Self {
        let region = &sample.region;
        let cycles = Cycles::said(&sample.outcome.details).map(|cycles| cycles.median);
        Self { traps: region.traps(), ns: region.ns, host_ns: region.handling_ns(), cycles }
    }
}

impl Saving {
    fn of(needed: u64, otherwise: u64) -> Self {
        let saved = i128::from(otherwise) - i128::from(needed);
        let clamped = saved.clamp(i64::MIN.into(), i64::MAX.into());
        Self {
            saved: i64::try_from(clamped).unwrap_or(i64::MAX),
            percent: (otherwise != 0).then(|| 100.0 * saved as f64 / otherwise as f64),
        }
    }
}

fn as_map<S: Serializer>(
    techniques: &[(&'static str, TechniqueResult)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(techniques.iter().map(|(name, result)| (name, result)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_saved_of_nothing_has_no_percentage() {
        assert_eq!(Saving::of(5, 0), Saving { saved: -5, percent: None });
        assert_eq!(Saving::of(u64::MAX, 0).saved, i64::MIN);
    }

    #[test]
    fn impossible_cycles_are_not_believed() {
        let said = |median: &str, min: &str| {
            let details = [("cycles-x100-median", median), ("cycles-x100-min", min)];
            Cycles::said(&details.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
        };
        assert_eq!(said("260", "200"), Some(Cycles { median: 2.6, min: 2.0 }));
        assert_eq!([said("260", "-1"), said("NaN", "1"), said("many", "1"), said("2.6", "1")], [None; 4]);
    }
}
