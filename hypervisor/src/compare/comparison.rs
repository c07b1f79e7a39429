//! Every workload by every technique, repeated; medians, and what each technique saves over the baseline.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::host::HostFacts;
use super::sample::{Failure, Machine, Sample, measure};
use super::{NOTES, Workload};
use crate::launch::{Config, EngineChoice, Report};
use crate::ledger::{BatchSizes, ExitRow, WorkRow};
use crate::technique::Technique;

/// What to compare, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which workloads.
    pub workloads: Vec<Workload>,
    /// By which techniques.
    pub techniques: Vec<&'static Technique>,
    /// The technique that the others are compared with, if it is among them.
    pub baseline: &'static str,
    /// Whether techniques or baseline are not the usual ones, so that the result has to say them.
    pub chosen: bool,
    /// How often each; at least 1.
    pub repeat: usize,
    /// On what machines: one comparison each.
    pub machines: Vec<Machine>,
}

/// One boot is about to begin.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Which workload.
    pub workload: &'static str,
    /// Which technique.
    pub technique: &'static str,
    /// On which engine.
    pub engine: EngineChoice,
    /// How many boots came before.
    pub done: usize,
    /// How many there will be.
    pub total: usize,
}

/// All results, with where they come from.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Version of this shape.
    pub schema: u32,
    /// Version of this program.
    pub version: &'static str,
    /// Whether it was built without optimization: its times then mean little.
    pub debug_build: bool,
    /// The machine.
    pub host: HostFacts,
    /// The engine that was asked for.
    pub asked: &'static str,
    /// What ran the first guest; absent if none could be started.
    pub engine: Option<EngineFacts>,
    /// How often each was measured.
    pub repeat: usize,
    /// Memory of each guest.
    pub mem_bytes: u64,
    /// How long vCPUs and devices look for something to do before they sleep, at most, in microseconds.
    pub busy_poll_us: u64,
    /// The results.
    pub workloads: Vec<WorkloadResult>,
    /// What the numbers do not mean.
    pub notes: &'static [&'static str],
    /// The technique that the others are compared with, if techniques or baseline were chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<&'static str>,
    /// Which techniques were measured.
    #[serde(skip)]
    pub(super) techniques: Vec<&'static str>,
    /// Those of them that are compared with the baseline.
    #[serde(skip)]
    pub(super) compared: Vec<&'static str>,
    /// Whether any guest could be started at all.
    #[serde(skip)]
    pub(super) started: bool,
}

/// The engine, for the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineFacts {
    /// "kvm" or "process".
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
    /// Whether every technique did the same amount of work, with right results.
    pub ok: bool,
    /// What is wrong, if anything is.
    pub problems: Vec<String>,
    /// Which techniques lacked a device for it, and why. That is not a failure, but then nothing is compared.
    pub skipped: Vec<String>,
    /// Name and result of each technique.
    #[serde(serialize_with = "as_map")]
    pub techniques: Vec<(&'static str, TechniqueResult)>,
    /// Traps that the first technique besides the baseline saves.
    pub traps_saved: Option<Saving>,
    /// Nanoseconds that it saves.
    pub time_saved: Option<Saving>,
    /// What each technique saves, by its name, if techniques or baseline were chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub savings: Option<BTreeMap<&'static str, Saved>>,
    /// The same, in any case.
    #[serde(skip)]
    pub(super) saved: Vec<(&'static str, Saved)>,
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
    /// Exits by cause.
    pub exits: Vec<ExitRow>,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunFigures {
    /// Exits between the marks.
    pub traps: u64,
    /// Wall time between the marks, in nanoseconds.
    pub ns: u64,
    /// The part of it that the hypervisor worked.
    pub host_ns: u64,
}

impl Comparison {
    /// Whether every result is right.
    pub fn ok(&self) -> bool {
        self.workloads.iter().all(|w| w.ok)
    }

    fn begin(machine: &Machine, settings: &Settings) -> Self {
        let techniques: Vec<_> = settings.techniques.iter().map(|technique| technique.name).collect();
        let baseline = techniques.iter().find(|name| **name == settings.baseline).copied();
        let compared = match baseline {
            Some(baseline) => techniques.iter().filter(|name| **name != baseline).copied().collect(),
            None => Vec::new(),
        };
        Self {
            schema: 1,
            version: env!("CARGO_PKG_VERSION"),
            debug_build: cfg!(debug_assertions),
            host: HostFacts::gather(),
            asked: machine.engine.name(),
            engine: None,
            repeat: settings.repeat,
            mem_bytes: machine.mem_bytes,
            busy_poll_us: crate::host::busy_poll::longest_us(),
            workloads: Vec::new(),
            notes: &NOTES,
            baseline: baseline.filter(|_| settings.chosen),
            techniques,
            compared,
            started: false,
        }
    }

    fn add(&mut self, workload: &Workload, runs: Runs, settings: &Settings) {
        for sample in runs.iter().flat_map(|(_, samples)| samples) {
            self.started |= !matches!(sample, Err(Failure::Start(_) | Failure::Unavailable(_)));
            if let (None, Ok(sample)) = (&self.engine, sample) {
                self.engine = Some(EngineFacts::of(sample));
            }
        }
        self.workloads.push(WorkloadResult::of(workload, runs, settings));
    }
}

/// The runs of one workload, by technique.
type Runs = Vec<(&'static Technique, Vec<Result<Sample, Failure>>)>;

/// Measures everything that `settings` asks for, booting guests by means of `boot`; one result for each machine.
///
/// Machines and techniques take turns, so that a host that gets slower meanwhile does so for all of them.
pub fn compare<E: std::fmt::Display>(
    settings: &Settings,
    mut boot: impl FnMut(Config) -> Result<Report, E>,
    mut on_progress: impl FnMut(Progress),
) -> Vec<Comparison> {
    let Settings { workloads, techniques, repeat, machines, .. } = settings;
    let total = workloads.len() * repeat * machines.len() * techniques.len();
    let mut done = 0;
    let mut comparisons: Vec<Comparison> = machines.iter().map(|m| Comparison::begin(m, settings)).collect();
    for workload in workloads {
        let none = || techniques.iter().map(|technique| (*technique, Vec::new())).collect();
        let mut runs: Vec<Runs> = machines.iter().map(|_| none()).collect();
        for _ in 0..*repeat {
            for (machine, runs) in machines.iter().zip(&mut runs) {
                for (technique, samples) in runs {
                    on_progress(Progress {
                        workload: workload.name,
                        technique: technique.name,
                        engine: machine.engine,
                        done,
                        total,
                    });
                    samples.push(measure(technique, workload, machine, &mut boot));
                    done += 1;
                }
            }
        }
        for (comparison, runs) in comparisons.iter_mut().zip(runs) {
            comparison.add(workload, runs, settings);
        }
    }
    comparisons
}

impl EngineFacts {
    fn of(sample: &Sample) -> Self {
        let info = &sample.engine;
        Self { name: info.name, transport: info.transport, detail: info.detail.clone() }
    }
}

impl WorkloadResult {
    fn of(workload: &Workload, runs: Runs, settings: &Settings) -> Self {
        let (mut problems, mut skipped) = (Vec::new(), Vec::new());
        let mut results = Vec::new();
        for (technique, samples) in runs {
            let (good, bad): (Vec<_>, Vec<_>) = samples.into_iter().partition(Result::is_ok);
            let ok = bad.is_empty();
            for failure in bad.into_iter().filter_map(Result::err) {
                let lacking = matches!(failure, Failure::Skipped(_) | Failure::Unavailable(_));
                let list = if lacking { &mut skipped } else { &mut problems };
                let line = format!("{}: {failure}", technique.name);
                if !list.contains(&line) {
                    list.push(line);
                }
            }
            let good = good.into_iter().filter_map(Result::ok).collect();
            results.extend(TechniqueResult::of(good, ok).map(|result| (technique.name, result)));
        }
        let saved = match problems.is_empty() && skipped.is_empty() {
            true => savings(&results, settings.baseline, &mut problems),
            false => Vec::new(),
        };
        let first = saved.first().map(|(_, saved)| *saved);
        let ok = problems.is_empty();
        let Workload { name, about, .. } = *workload;
        Self {
            name,
            about,
            ok,
            problems,
            skipped,
            techniques: results,
            traps_saved: first.map(|saved| saved.traps),
            time_saved: first.map(|saved| saved.time),
            savings: settings.chosen.then(|| saved.iter().copied().collect()),
            saved,
        }
    }
}

/// What each technique saves over the baseline; what cannot be compared is a problem.
fn savings(
    results: &[(&'static str, TechniqueResult)],
    baseline: &'static str,
    problems: &mut Vec<String>,
) -> Vec<(&'static str, Saved)> {
    let Some((b, other)) = results.iter().find(|(name, _)| *name == baseline) else { return Vec::new() };
    let mut saved = Vec::new();
    for (a, result) in results.iter().filter(|(name, _)| name != b) {
        if result.ops != other.ops {
            problems.push(format!("{a} did {} operations, {b} {}: not comparable", result.ops, other.ops));
        } else if result.engine != other.engine {
            let names = (result.engine.name, other.engine.name);
            problems.push(format!("{a} ran on engine {}, {b} on {}: not comparable", names.0, names.1));
        } else {
            let traps = Saving::of(result.traps, other.traps);
            saved.push((*a, Saved { traps, time: Saving::of(result.ns, other.ns) }));
        }
    }
    saved
}

impl TechniqueResult {
    /// Of the runs that succeeded; nothing if none did.
    fn of(samples: Vec<Sample>, ok: bool) -> Option<Self> {
        let runs: Vec<RunFigures> = samples.iter().map(RunFigures::of).collect();
        let mut by_time: Vec<usize> = (0..samples.len()).collect();
        by_time.sort_by_key(|i| runs.get(*i).map(|run| run.ns));
        // Of an even number the lower of the two in the middle, so that it is a run that took place.
        let median = *by_time.get(samples.len().checked_sub(1)? / 2)?;
        let sample = samples.into_iter().nth(median)?;
        let engine = EngineFacts::of(&sample);
        let Sample { outcome, region, whole_traps, kernel_statistics, .. } = sample;
        Some(Self {
            ok,
            ops: outcome.ops,
            traps: region.traps(),
            ns: region.ns,
            host_ns: region.handling_ns(),
            engine,
            exits: region.exits,
            batches: region.batches,
            work: region.work,
            flushes: outcome.flushes,
            whole: WholeBoot { traps: whole_traps, kernel_statistics },
            details: outcome.details,
            runs,
        })
    }
}

impl RunFigures {
    fn of(sample: &Sample) -> Self {
        let region = &sample.region;
        Self { traps: region.traps(), ns: region.ns, host_ns: region.handling_ns() }
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
mod tests;
