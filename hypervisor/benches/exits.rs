//! The cost of an exit: the full path of this hypervisor, compared with the least that KVM needs for the same exit.
//!
//! Both are measured by turns in one process, so that load on the machine affects both equally. The floor is a loop of
//! KVM_RUN around a guest that only exits ([`support::floor`]). Ours is the workload `null-call` of the reference
//! guest, between its marks: guest code, engine, monitor, the exit's handling and the ledger. A round has 1000 exits of
//! each kind and gives one ratio; the table shows the median of the ratios.
//!
//! Each round also has a boot of ours with `--trace`, before or after the one without, by turns. The table shows the
//! median of the differences. On a busy machine those drown in noise; the last line is what a trace does on the vCPU's
//! thread by itself, which is its least cost.

mod support;

use std::fs::File;
use std::hint::black_box;
use std::time::{Duration, Instant};

use paravane::compare;
use paravane::compare::{Machine, WORKLOADS, Workload};
use paravane::launch;
use paravane::launch::{Config, EngineChoice, Report, RunError, TransportChoice};
use paravane::ledger::{Cause, nanos_f64};
use paravane::monitor::observe::{Observer, Seen};
use paravane::technique::Technique;
use paravane::trace::format::Header;
use paravane::trace::record::{BeginError, Destination, Recorder};
use serde_json::{Value, json};
use support::floor::Floor;
use support::{Options, least, median};

const EXITS: u32 = 1000;
/// The target for the full path, as a multiple of the floor.
const TARGET: f64 = 1.15;

/// A kind of exit that the floor measures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Call,
    Fault,
}

/// One line of the table.
struct Row {
    name: &'static str,
    engine: EngineChoice,
    kind: Kind,
    floor: Vec<f64>,
    ours: Vec<f64>,
    /// Ours with a trace.
    traced: Vec<f64>,
    /// Why there is no result.
    skipped: Option<String>,
}

fn rows() -> [Row; 4] {
    let row = |name, engine, kind| Row {
        name,
        engine,
        kind,
        floor: vec![],
        ours: vec![],
        traced: vec![],
        skipped: None,
    };
    [
        row("hypercall, KVM", EngineChoice::Kvm, Kind::Call),
        row("trapped instruction, KVM", EngineChoice::Kvm, Kind::Fault),
        row("hypercall, process", EngineChoice::Process, Kind::Call),
        row("trapped instruction, process", EngineChoice::Process, Kind::Fault),
    ]
}

impl Row {
    fn measure(&mut self, floor: Option<&mut Floor>) {
        if self.skipped.is_some() {
            return;
        }
        match self.round(floor) {
            Ok((floor, ours, traced)) => {
                self.floor.extend(floor);
                self.ours.push(ours);
                self.traced.push(traced);
            }
            Err(why) => self.skipped = Some(why),
        }
    }

    /// Nanoseconds for each exit: the floor's, if this kind has one, ours, and ours with a trace.
    fn round(&self, floor: Option<&mut Floor>) -> Result<(Option<f64>, f64, f64), String> {
        let floor = match floor.filter(|_| self.engine == EngineChoice::Kvm) {
            None => None,
            Some(floor) => {
                let time = if self.kind == Kind::Call { floor.calls(EXITS) } else { floor.faults(EXITS) };
                let time = time.map_err(|e| e.to_string())?;
                Some(time.as_nanos() as f64 / f64::from(EXITS))
            }
        };
        if self.ours.len().is_multiple_of(2) {
            let ours = self.ours(&mut launch::run)?;
            Ok((floor, ours, self.ours(&mut traced)?))
        } else {
            let traced = self.ours(&mut traced)?;
            Ok((floor, self.ours(&mut launch::run)?, traced))
        }
    }

    /// Nanoseconds for each exit of ours.
    fn ours(&self, boot: &mut impl FnMut(Config) -> Result<Report, RunError>) -> Result<f64, String> {
        let name = if self.kind == Kind::Call { "pv" } else { "trap" };
        let technique = Technique::named(name).ok_or("no such technique")?;
        let machine = Machine {
            mem_bytes: 64 << 20,
            engine: self.engine,
            transport: TransportChoice::Auto,
            deadline: Duration::from_secs(60),
        };
        let null_call: &Workload = &WORKLOADS[0];
        let sample =
            compare::measure(technique, null_call, &machine, boot).map_err(|failure| failure.to_string())?;
        Ok(sample.region.ns as f64 / sample.region.traps() as f64)
    }

    /// What a trace adds, by round.
    fn by_trace(&self) -> Vec<f64> {
        self.traced.iter().zip(&self.ours).map(|(traced, ours)| traced - ours).collect()
    }

    /// Our time divided by the floor's, by round.
    fn ratios(&self) -> Vec<f64> {
        self.ours.iter().zip(&self.floor).map(|(ours, floor)| ours / floor).collect()
    }

    fn print(&self) {
        if let Some(why) = &self.skipped {
            println!("{:<30}  SKIP: {why}", self.name);
            return;
        }
        let time = |series: &[f64]| {
            format!("{:>8} {:>8}", nanos_f64(least(series).round()), nanos_f64(median(series).round()))
        };
        let (floor, ratio) = match median(&self.ratios()) {
            ratio if ratio.is_nan() => (format!("{:>17}", "-"), "-".to_owned()),
            ratio => {
                let verdict = if ratio <= TARGET { "within" } else { "over" };
                (time(&self.floor), format!("{ratio:.3}, {verdict} {TARGET}"))
            }
        };
        let by_trace = median(&self.by_trace());
        println!("{:<30}  {floor}   {}   {by_trace:>+6.0} ns   {ratio}", self.name, time(&self.ours));
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "floor_ns": self.floor,
            "ours_ns": self.ours,
            "traced_ns": self.traced,
            "ratio": Some(median(&self.ratios())).filter(|ratio| !ratio.is_nan()),
            "skipped": self.skipped,
        })
    }
}

/// Boots with a trace, which nobody reads.
fn traced(config: Config) -> Result<Report, RunError> {
    let path = std::env::temp_dir().join(format!("paravane-bench-{}.trace", std::process::id()));
    let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let trace = Some(Destination { file: Box::new(file), image: None });
    let report = launch::run(Config { trace, ..config });
    let _ = std::fs::remove_file(path);
    report
}

/// Exits that fit the recorder's buffers, so that nothing waits for the writer's thread.
const TOLD: u64 = 60_000;

/// Nanoseconds that a recorder takes for an exit, a swap of buffers now and then included.
fn told() -> Result<f64, BeginError> {
    let to = Destination { file: Box::new(std::io::sink()), image: None };
    let mut recorder = Recorder::begin(to, Header::default(), 0)?;
    let start = Instant::now();
    for n in 0..TOLD {
        let (left, entered) = (n * 1000, n * 1000 + 500);
        recorder.see(&Seen { handled: Cause::Kick.into(), left, entered, worked: 500, place: black_box(n) });
    }
    let ns = start.elapsed().as_nanos() as f64 / TOLD as f64;
    recorder.finish();
    Ok(ns)
}

fn main() {
    let options = Options::parse("exits", 21);
    let mut floor = Floor::new();
    let mut rows = rows();
    if let Err(why) = &floor {
        for row in rows.iter_mut().filter(|row| row.engine == EngineChoice::Kvm) {
            row.skipped = Some(format!("no floor: {why}"));
        }
    }
    let mut by_told = Vec::new();
    for _ in 0..options.rounds {
        by_told.extend(told());
        rows.iter_mut().for_each(|row| row.measure(floor.as_mut().ok()));
    }
    if options.json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        let host = compare::HostFacts::gather();
        println!(
            "{:#}",
            json!({ "host": host, "exits_per_round": EXITS, "target": TARGET, "rows": rows,
            "recorder_ns": by_told })
        );
        return;
    }
    println!(
        "One exit and the way back; {} rounds of {EXITS}: least and median of the means\n",
        options.rounds
    );
    println!("{:<30}  {:>17}   {:>17}   {:>9}   ours / floor", "", "floor", "ours", "a trace");
    rows.iter().for_each(Row::print);
    println!(
        "\nA trace on the vCPU's thread, for each exit: {} {}",
        nanos_f64(least(&by_told)),
        nanos_f64(median(&by_told))
    );
}
