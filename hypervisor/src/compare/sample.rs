//! One boot: a technique doing a workload once.

use std::borrow::Cow;
use std::time::Duration;

use super::outcome::{self, Outcome, OutcomeError, printable};
use super::{Unavailable, Workload};
use crate::engine::EngineInfo;
use crate::image::builtin::PROGRAMS;
use crate::launch::{Config, EngineChoice, Report, TransportChoice};
use crate::ledger::Region;
use crate::machine::console::{CaptureSink, ConsoleInput, ConsoleSink};
use crate::machine::end::DomainEnd;
use crate::technique::{EngineNeed, Technique};

/// What each guest is started with.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Guest memory in bytes.
    pub mem_bytes: u64,
    /// Which engine.
    pub engine: EngineChoice,
    /// Which transport.
    pub transport: TransportChoice,
    /// How long one boot may take.
    pub deadline: Duration,
}

/// What one boot measured.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What the guest said.
    pub outcome: Outcome,
    /// What the ledger saw between the marks.
    pub region: Region,
    /// What ran it.
    pub engine: EngineInfo,
    /// How many exits reached us in the whole boot, outside of the marks too.
    pub whole_traps: u64,
    /// What the host's kernel counted in the whole boot.
    pub kernel_statistics: Vec<(String, u64)>,
    /// From the image to the guest's first instruction, in nanoseconds.
    pub startup_ns: u64,
}

/// Why a boot measured nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The technique's kernel has no such operation.
    #[error("only a {0} kernel does this")]
    Foreign(&'static str),
    /// The guest lacks a device that the workload needs.
    #[error("the guest lacks a device for it: {0}")]
    Skipped(String),
    /// The host lacks what the device would be made of.
    #[error("{0}")]
    Unavailable(#[from] Unavailable),
    /// The guest could not be started.
    #[error("the guest could not be started: {0}")]
    Start(String),
    /// It ended in another way than by powering off.
    #[error("the guest did not finish: {end}; its last words: {last_words}")]
    End {
        /// How it ended, for people.
        end: String,
        /// The end of its console output.
        last_words: String,
    },
    /// A device stopped for what the guest did with it.
    #[error("the guest broke the rules of {0}")]
    Stopped(String),
    /// Its result cannot be read.
    #[error("{0}")]
    Outcome(#[from] OutcomeError),
    /// It says that it failed, or found its own results wrong.
    #[error("the guest says that it failed: {0}")]
    Wrong(String),
    /// It did not bracket its work.
    #[error("the guest set no pair of marks around its work, so that nothing was measured")]
    NoRegion,
}

impl Failure {
    /// Whether something was lacking that nobody promised, so that nothing went wrong.
    pub fn is_lack(&self) -> bool {
        matches!(self, Self::Foreign(_) | Self::Skipped(_) | Self::Unavailable(_))
    }
}

/// Boots `technique`'s guest for `workload` by means of `boot`.
pub fn measure<E: std::fmt::Display>(
    technique: &'static Technique,
    workload: &Workload,
    machine: &Machine,
    boot: &mut impl FnMut(Config) -> Result<Report, E>,
) -> Result<Sample, Failure> {
    if let Some(kind) = workload.only.filter(|kind| *kind != technique.runs) {
        return Err(Failure::Foreign(kind.name()));
    }
    let devices = workload.needs.provide()?;
    let console = CaptureSink::default();
    let cmdline = match workload.program {
        Some(words) => format!("run={words}"),
        None => format!("bench={}", workload.name),
    };
    let initrd = workload.program.map(|_| PROGRAMS.to_vec());
    let config = config(technique, machine, &cmdline, Box::new(console.clone()));
    let config = Config { devices, initrd, ..config };
    let report = boot(config).map_err(|e| Failure::Start(e.to_string()))?;
    let text = console.text();
    // First of all, as the rest may follow from it.
    if let Some(stopped) = report.devices.iter().find(|device| device.stops != 0) {
        let last = stopped.last.as_deref().unwrap_or("no reason is known");
        return Err(Failure::Stopped(format!("{}, which stopped: {last}", stopped.device)));
    }
    let outcome = Outcome::parse(&text, workload.name);
    match (&report.end, &outcome) {
        // A guest whose workload failed says so and ends as a crash: what it says is the better reason.
        (DomainEnd::PowerOff, _) | (DomainEnd::GuestCrash, Ok(Outcome { ok: false, .. })) => {}
        _ => return Err(Failure::End { end: report.end.to_string(), last_words: last_words(&text) }),
    }
    if let Some(why) = outcome::skipped(&text, workload.name) {
        return Err(Failure::Skipped(why));
    }
    let mut outcome = outcome?;
    if !outcome.ok {
        let why = outcome.details.remove("why");
        return Err(Failure::Wrong(why.unwrap_or_else(|| "it gives no reason".to_owned())));
    }
    let region = report.ledger.region().ok_or(Failure::NoRegion)?;
    let startup_ns = report.startup.iter().fold(0u64, |sum, (_, ns)| sum.saturating_add(*ns));
    Ok(Sample {
        outcome,
        region,
        engine: report.engine,
        whole_traps: report.ledger.exits(),
        kernel_statistics: report.kernel_statistics,
        startup_ns,
    })
}

/// A guest without devices, which is the technique's reference guest.
pub(super) fn config(
    technique: &'static Technique,
    machine: &Machine,
    cmdline: &str,
    sink: Box<dyn ConsoleSink>,
) -> Config {
    // A technique that cannot run on the machine's engine brings its own, or needs none.
    let (engine, transport) = match technique.engine {
        EngineNeed::Deprivileged => (machine.engine, machine.transport),
        EngineNeed::Ring0(_) | EngineNeed::Nothing => (EngineChoice::Auto, TransportChoice::Auto),
    };
    Config {
        image: Cow::Borrowed(technique.builtin()),
        image_name: format!("built-in {} guest", technique.name),
        mem_bytes: machine.mem_bytes,
        vcpus: 1,
        cmdline: cmdline.to_owned(),
        initrd: None,
        devices: Vec::new(),
        technique: Some(technique),
        engine,
        transport,
        sink,
        input: ConsoleInput::default(),
        on_ready: None,
        once_running: None,
        control: Default::default(),
        deadline: Some(machine.deadline),
        on_peek: None,
        count_memory: false,
        marks: true,
        on_stop: None,
        on_pause: None,
        gdb: None,
        trace: None,
        snapshot_to: None,
        restore: None,
    }
}

/// The last lines of a guest's output, on one line.
pub(super) fn last_words(console: &str) -> String {
    let mut lines: Vec<&str> = console.lines().rev().filter(|l| !l.trim().is_empty()).take(3).collect();
    lines.reverse();
    if lines.is_empty() { "none".to_owned() } else { printable(&lines.join(" / ")) }
}
