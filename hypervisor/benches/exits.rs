//! The cost of an exit: the full path of this hypervisor, compared with the least that KVM needs for the same exit.
//!
//! Both are measured by turns in one process, so that load on the machine affects both equally. The floor is a loop of
//! KVM_RUN around a guest that only exits ([`support::floor`]). Ours is the workload `null-call` of the reference
//! guest, between its marks: guest code, engine, monitor, the exit's handling and the ledger. A round has 1000 exits of
//! each kind and gives one ratio; the table shows the median of the ratios.

mod support;

use std::time::Duration;

use paravane::compare;
use paravane::compare::{Machine, WORKLOADS, Workload};
use paravane::launch;
use paravane::launch::{EngineChoice, TransportChoice};
use paravane::ledger::nanos_f64;
use paravane::technique::Technique;
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
    /// Why there is no result.
    skipped: Option<String>,
}

fn rows() -> [Row; 4] {
    let row = |name, engine, kind| Row { name, engine, kind, floor: vec![], ours: vec![], skipped: None };
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
            Ok((floor, ours)) => {
                self.floor.extend(floor);
                self.ours.push(ours);
            }
            Err(why) => self.skipped = Some(why),
        }
    }

    /// Nanoseconds for each exit: the floor's, if this kind has one, and ours.
    fn round(&self, floor: Option<&mut Floor>) -> Result<(Option<f64>, f64), String> {
        let floor = match floor.filter(|_| self.engine == EngineChoice::Kvm) {
            None => None,
            Some(floor) => {
                let time = if self.kind == Kind::Call { floor.calls(EXITS) } else { floor.faults(EXITS) };
                let time = time.map_err(|e| e.to_string())?;
                Some(time.as_nanos() as f64 / f64::from(EXITS))
            }
        };
        let name = if self.kind == Kind::Call { "pv" } else { "trap" };
        let technique = Technique::named(name).ok_or("no such technique")?;
        let machine = Machine {
            mem_bytes: 64 << 20,
            engine: self.engine,
            transport: TransportChoice::Auto,
            deadline: Duration::from_secs(60),
        };
        let null_call: &Workload = &WORKLOADS[0];
        let sample = compare::measure(technique, null_call, &machine, &mut launch::run)
            .map_err(|failure| failure.to_string())?;
        Ok((floor, sample.region.ns as f64 / sample.region.traps() as f64))
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
        println!("{:<30}  {floor}   {}   {ratio}", self.name, time(&self.ours));
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "floor_ns": self.floor,
            "ours_ns": self.ours,
            "ratio": Some(median(&self.ratios())).filter(|ratio| !ratio.is_nan()),
            "skipped": self.skipped,
        })
    }
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
    for _ in 0..options.rounds {
        rows.iter_mut().for_each(|row| row.measure(floor.as_mut().ok()));
    }
    if options.json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        let host = compare::HostFacts::gather();
        println!("{:#}", json!({ "host": host, "exits_per_round": EXITS, "target": TARGET, "rows": rows }));
        return;
    }
    println!(
        "One exit and the way back; {} rounds of {EXITS}: least and median of the means\n",
        options.rounds
    );
    println!("{:<30}  {:>17}   {:>17}   ours / floor", "", "floor", "ours");
    rows.iter().for_each(Row::print);
}
