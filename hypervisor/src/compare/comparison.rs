//! Every workload by every technique: what is asked for, and the whole result.

use std::collections::BTreeMap;

use serde::Serialize;

use super::host::HostFacts;
use super::native::Natively;
use super::result::{EngineFacts, Runs, TechniqueResult, WorkloadResult};
use super::sample::{Failure, Machine};
use super::{NOTES, Workload, order};
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
    /// How often each is run before, without being counted.
    pub warm_up: usize,
    /// What the order of runs follows from.
    pub seed: u64,
    /// On what machines: one comparison each.
    pub machines: Vec<Machine>,
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
    /// How often each was run before, without being counted.
    pub warm_up: usize,
    /// What the order of the runs followed from.
    pub seed: u64,
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
    /// What the techniques that were measured do, in a line each.
    pub abouts: BTreeMap<&'static str, &'static str>,
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

    pub(super) fn begin(machine: &Machine, settings: &Settings, taking_part: &TakingPart) -> Self {
        let techniques: Vec<_> = taking_part.able.iter().map(|technique| technique.name).collect();
        Self {
            schema: 1,
            version: env!("CARGO_PKG_VERSION"),
            debug_build: cfg!(debug_assertions),
            host: HostFacts::gather(),
            asked: machine.engine.name(),
            engine: None,
            repeat: settings.repeat,
            warm_up: settings.warm_up,
            seed: settings.seed,
            mem_bytes: machine.mem_bytes,
            busy_poll_us: crate::host::busy_poll::longest_us(),
            workloads: Vec::new(),
            notes: &NOTES,
            baseline: techniques.iter().find(|name| **name == settings.baseline).copied(),
            abouts: taking_part.able.iter().map(|technique| (technique.name, technique.about)).collect(),
            unavailable: taking_part.unavailable.clone(),
            techniques,
            started: false,
            named: settings.named,
        }
    }

    pub(super) fn add(&mut self, workload: &Workload, runs: Runs, natively: &Natively, settings: &Settings) {
        let any_needs_one = runs.iter().any(|(technique, _)| needs_an_engine(technique));
        let of_engine = runs.iter().filter(|(technique, _)| needs_an_engine(technique) || !any_needs_one);
        for sample in of_engine.flat_map(|(_, samples)| samples) {
            self.started |=
                !matches!(sample, Err(Failure::Start(_) | Failure::Unavailable(_) | Failure::Foreign(_)));
            if let (None, Ok(sample)) = (&self.engine, sample) {
                self.engine = Some(EngineFacts::of(&sample.engine));
            }
        }
        self.workloads.push(WorkloadResult::of(workload, runs, natively, settings));
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
pub(super) struct TakingPart {
    pub(super) able: Vec<&'static Technique>,
    unavailable: Vec<NotHere>,
}

impl TakingPart {
    pub(super) fn of(settings: &Settings) -> Self {
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

#[cfg(test)]
mod tests;
