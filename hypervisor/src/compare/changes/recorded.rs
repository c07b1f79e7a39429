//! A result of `compare --json`, read back: as much of it as a comparison of two needs.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Difference, Measure};
use crate::text::printable::printable;

/// The shape that is understood.
const SCHEMA: u64 = 1;
/// The most runs of a workload by a technique: what `--repeat` allows.
pub const MOST_RUNS: usize = 1000;

/// A recorded result: one or several engines.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub(super) engines: Vec<Recording>,
}

/// Why a file is no result.
#[derive(Debug, thiserror::Error)]
pub enum RecordedError {
    /// It is something else.
    #[error("this is not what `paravane compare --json` writes: {0}")]
    Json(#[from] serde_json::Error),
    /// It is of another version.
    #[error("its schema is {0}, and this program reads schema 1")]
    Schema(String),
    /// It has more runs than can be measured, and judging them would take longer than anybody waits.
    #[error("{what} has {runs} runs, and --repeat makes {MOST_RUNS} at most")]
    Runs {
        /// The workload and the technique.
        what: String,
        /// How many.
        runs: usize,
    },
}

/// One engine's results.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Recording {
    #[serde(default)]
    pub(super) asked: String,
    version: String,
    debug_build: bool,
    host: Host,
    engine: Option<Engine>,
    mem_bytes: u64,
    busy_poll_us: u64,
    pub(super) workloads: Vec<Workload>,
}

#[derive(Clone, Debug, Deserialize)]
struct Host {
    cpu: Option<String>,
    cpus: u64,
    kernel: Option<String>,
    kvm_module: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Engine {
    name: String,
    transport: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Workload {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) techniques: BTreeMap<String, Technique>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Technique {
    pub(super) ops: u64,
    pub(super) runs: Vec<Run>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Run {
    traps: u64,
    ns: u64,
    pub(super) cycles: Option<f64>,
}

impl Recorded {
    /// Of the text of a file.
    ///
    /// # Errors
    /// When it is not a result, or one of another schema.
    pub fn parse(text: &str) -> Result<Self, RecordedError> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        let schema = value.get("schema").cloned().unwrap_or_default();
        if schema != SCHEMA {
            return Err(RecordedError::Schema(printable(&schema.to_string()).to_string()));
        }
        let engines = match value.get("engines") {
            Some(engines) => Vec::<Recording>::deserialize(engines)?,
            None => vec![Recording::deserialize(&value)?],
        };
        engines.iter().try_for_each(Recording::check)?;
        Ok(Self { engines })
    }
}

impl Recording {
    fn check(&self) -> Result<(), RecordedError> {
        for workload in &self.workloads {
            let mut techniques = workload.techniques.iter();
            if let Some((by, technique)) = techniques.find(|(_, t)| t.runs.len() > MOST_RUNS) {
                let what = printable(&name(&workload.name, by)).to_string();
                return Err(RecordedError::Runs { what, runs: technique.runs.len() });
            }
        }
        Ok(())
    }

    /// Everything that was measured, by name.
    pub(super) fn names(&self) -> Vec<String> {
        let of = |w: &Workload| -> Vec<String> { w.techniques.keys().map(|t| name(&w.name, t)).collect() };
        self.workloads.iter().flat_map(of).collect()
    }

    pub(super) fn has(&self, wanted: &str) -> bool {
        self.workloads.iter().any(|w| w.techniques.keys().any(|t| name(&w.name, t) == wanted))
    }

    /// What else than the program's work may be the reason of a change.
    pub(super) fn differences(&self, other: &Self) -> Vec<Difference> {
        let known = |fact: &Option<String>| fact.clone().unwrap_or_else(|| "unknown".to_owned());
        let engine = |of: &Option<Engine>| {
            of.as_ref()
                .map_or_else(|| "none".to_owned(), |e| format!("{}, transport {}", e.name, e.transport))
        };
        let built = |debug: bool| if debug { "without optimization" } else { "with optimization" }.to_owned();
        let facts = |of: &Self| {
            [
                ("engine", engine(&of.engine)),
                ("processor", known(&of.host.cpu)),
                ("processors", of.host.cpus.to_string()),
                ("kernel", known(&of.host.kernel)),
                ("KVM module", known(&of.host.kvm_module)),
                ("program", of.version.clone()),
                ("program built", built(of.debug_build)),
                ("guest memory", format!("{} MiB", of.mem_bytes >> 20)),
                ("busy polling", format!("{} us", of.busy_poll_us)),
            ]
        };
        let both = facts(self).into_iter().zip(facts(other));
        let differing = both.filter(|((_, first), (_, second))| first != second);
        differing
            .map(|((what, first), (_, second))| Difference { what: what.to_owned(), first, second })
            .collect()
    }
}

fn name(workload: &str, technique: &str) -> String {
    format!("{workload} by {technique}")
}

impl Technique {
    /// One figure for each run.
    pub(super) fn measured(&self, measure: Measure) -> Vec<f64> {
        let of = |run: &Run| match measure {
            Measure::Time => Some(run.ns as f64 / self.ops.max(1) as f64),
            Measure::Cycles => run.cycles,
            Measure::Exits => Some(run.traps as f64),
        };
        self.runs.iter().filter_map(of).collect()
    }
}
