//! Every workload by every technique, repeated: what runs, in which order, and the whole result.

use serde::Serialize;

use super::host::HostFacts;
use super::native::{middle, native};
use super::result::{Cycles, EngineFacts, Runs, TechniqueResult, WorkloadResult};
use super::sample::{Failure, Machine, Sample, measure};
use super::{NOTES, Workload, order};
use crate::launch::{Config, EngineChoice, Report};
use crate::technique::{EngineNeed, Technique};

/// What to compare, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which workloads.
    pub workloads: Vec<Workload>,
    /// By which techniques, in the order of the table of techniques.
    pub techniques: Vec<&'static Technique>,
    /// The technique that the others are compared with, if it is among them.
    pub baseline: &'static str,
    /// Whether the techniques were named, so that one that cannot be used here is a failure.
    pub named: bool,
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
    /// What ran the first guest that needs an engine; absent if none could be started.
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
    /// The technique that the others are compared with, if it was measured.
    pub baseline: Option<&'static str>,
    /// Techniques that cannot be used on this host, and why.
    pub unavailable: Vec<NotHere>,
    /// Which techniques were measured, in the order of the settings.
    #[serde(skip)]
    pub(super) techniques: Vec<&'static str>,
    /// Whether the engine could start any guest.
    #[serde(skip)]
    pub(super) started: bool,
    /// Whether what is unavailable was asked for by name.
    #[serde(skip)]
    pub(super) named: bool,
}

/// A technique that cannot be used on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotHere {
    /// Which.
    pub technique: &'static str,
    /// Why.
    pub why: String,
}

impl Comparison {
    /// Whether every result is right, and every technique that was named took part.
    pub fn ok(&self) -> bool {
        self.workloads.iter().all(|w| w.ok) && (self.unavailable.is_empty() || !self.named)
    }

    fn begin(machine: &Machine, settings: &Settings, taking_part: &TakingPart) -> Self {
        let techniques: Vec<_> = taking_part.able.iter().map(|technique| technique.name).collect();
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
            baseline: techniques.iter().find(|name| **name == settings.baseline).copied(),
            unavailable: taking_part.unavailable.clone(),
            techniques,
            started: false,
            named: settings.named,
        }
    }

    fn add(&mut self, workload: &Workload, runs: Runs, native: Option<Cycles>, settings: &Settings) {
        let any_needs_one = runs.iter().any(|(technique, _)| needs_an_engine(technique));
        let of_engine = runs.iter().filter(|(technique, _)| needs_an_engine(technique) || !any_needs_one);
        for sample in of_engine.flat_map(|(_, samples)| samples) {
            self.started |=
                !matches!(sample, Err(Failure::Start(_) | Failure::Unavailable(_) | Failure::Foreign(_)));
            if let (None, Ok(sample)) = (&self.engine, sample) {
                self.engine = Some(EngineFacts::of(&sample.engine));
            }
        }
        self.workloads.push(WorkloadResult::of(workload, runs, native, settings));
    }

    /// The techniques that were measured, in the order in which they are read.
    pub(super) fn columns(&self) -> Vec<&'static str> {
        order::reading(&self.techniques)
    }

    /// What a technique did with a workload, if it did anything.
    pub(super) fn result(&self, workload: &str, technique: &str) -> Option<&TechniqueResult> {
        self.workloads.iter().find(|w| w.name == workload)?.result(technique)
    }
}

/// Whether a technique's guests are run by the engine that was asked for.
pub(super) fn needs_an_engine(technique: &Technique) -> bool {
    technique.engine == EngineNeed::Deprivileged
}

/// Those of the settings' techniques that can be used on this host, and the others.
struct TakingPart {
    able: Vec<&'static Technique>,
    unavailable: Vec<NotHere>,
}

impl TakingPart {
    fn of(settings: &Settings) -> Self {
        let (mut able, mut unavailable) = (Vec::new(), Vec::new());
        for technique in &settings.techniques {
            match (technique.available)() {
                Ok(()) => able.push(*technique),
                Err(why) => unavailable.push(NotHere { technique: technique.name, why }),
            }
        }
        Self { able, unavailable }
    }
}

/// Measures everything that `settings` asks for, booting guests by means of `boot`; one result for each machine.
///
/// Machines and techniques take turns, so that a host that gets slower meanwhile does so for all of them. A technique
/// that does not need the machine's engine is measured once for all machines.
pub fn compare<E: std::fmt::Display>(
    settings: &Settings,
    mut boot: impl FnMut(Config) -> Result<Report, E>,
    mut on_progress: impl FnMut(Progress),
) -> Vec<Comparison> {
    let Settings { workloads, repeat, machines, .. } = settings;
    let taking_part = TakingPart::of(settings);
    let able = &taking_part.able;
    let on_engines = able.iter().filter(|technique| needs_an_engine(technique)).count();
    let each = on_engines * machines.len() + (able.len() - on_engines) * machines.len().min(1);
    let total = workloads.len() * repeat * each;
    let mut done = 0;
    let mut measured = |technique: &'static Technique, workload: &Workload, machine: &Machine| {
        let engine = machine.engine;
        on_progress(Progress { workload: workload.name, technique: technique.name, engine, done, total });
        done += 1;
        measure(technique, workload, machine, &mut boot)
    };
    let mut comparisons: Vec<Comparison> =
        machines.iter().map(|m| Comparison::begin(m, settings, &taking_part)).collect();
    for workload in workloads {
        let none = || able.iter().map(|technique| (*technique, Vec::new())).collect();
        let mut runs: Vec<Runs> = machines.iter().map(|_| none()).collect();
        let mut natively = Vec::new();
        for (column, technique) in able.iter().enumerate().cycle().take(able.len() * repeat) {
            if column == 0 {
                natively.extend(native(workload.name));
            }
            let mut shared: Option<Result<Sample, Failure>> = None;
            for (machine, runs) in machines.iter().zip(&mut runs) {
                let known = shared.take().filter(|_| !needs_an_engine(technique));
                let sample = known.unwrap_or_else(|| measured(technique, workload, machine));
                shared = Some(sample.clone());
                if let Some((_, samples)) = runs.get_mut(column) {
                    samples.push(sample);
                }
            }
        }
        let native = middle(natively);
        for (comparison, runs) in comparisons.iter_mut().zip(runs) {
            comparison.add(workload, runs, native, settings);
        }
    }
    comparisons
}

#[cfg(test)]
mod tests;
