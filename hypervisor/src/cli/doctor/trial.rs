//! Trying an engine: the built-in guests do on it, briefly, what costs an exit of each kind.

use std::time::Duration;

use serde::Serialize;

use crate::compare::{Failure, Machine, Sample, Workload, measure};
use crate::launch;
use crate::launch::{EngineChoice, TransportChoice};
use crate::technique::Technique;

/// An engine, or a transport of one, and what came of trying it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Its name on the command line.
    pub name: &'static str,
    /// Why it cannot be used; nothing if it can.
    pub why_not: Option<String>,
    /// The engine that ran the guest.
    pub engine: Option<&'static str>,
    /// How hypercalls entered the host.
    pub transport: Option<&'static str>,
    /// The engine's own words, and why it was chosen.
    pub detail: Option<String>,
    /// From the image to the guest's first instruction.
    pub startup_ns: Option<u64>,
    /// What exits cost.
    pub costs: Vec<Cost>,
}

/// The cost of one kind of exit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// What for.
    pub what: &'static str,
    /// By which technique.
    #[serde(skip)]
    pub technique: &'static str,
    /// Nanoseconds each, on average; nothing if it could not be measured.
    pub ns: Option<f64>,
    /// How many were measured.
    pub count: u64,
    /// Why it could not be measured.
    pub why_not: Option<String>,
}

/// Something that can be measured: by which technique, in which workload, and what of it.
struct Probe {
    what: &'static str,
    technique: &'static str,
    workload: &'static str,
    read: fn(&Sample) -> Option<(f64, u64)>,
}

/// The probe that every trial begins with.
const HYPERCALL: Probe =
    Probe { what: "a hypercall", technique: "pv", workload: "null-call", read: each_trap };

/// The further ones.
const FURTHER: [Probe; 4] = [
    Probe { what: "a privileged instruction", technique: "trap", workload: "null-call", read: each_trap },
    Probe { what: "a store to a page table", technique: "trap", workload: "map-512", read: each_trap },
    Probe {
        what: "a page mapped, touched, protected and unmapped in batches",
        technique: "pv",
        workload: "map-512",
        read: each_operation,
    },
    Probe {
        what: "a timer of 100 us, from arming it to its handler",
        technique: "pv",
        workload: "timer-1000",
        read: timer,
    },
];

fn each_trap(sample: &Sample) -> Option<(f64, u64)> {
    let traps = sample.region.traps();
    (traps != 0).then(|| (sample.region.ns as f64 / traps as f64, traps))
}

fn each_operation(sample: &Sample) -> Option<(f64, u64)> {
    let ops = sample.outcome.ops;
    (ops != 0).then(|| (sample.region.ns as f64 / ops as f64, ops))
}

fn timer(sample: &Sample) -> Option<(f64, u64)> {
    let mean = sample.outcome.details.get("latency-mean-ns")?.parse().ok()?;
    Some((mean, sample.outcome.ops))
}

/// Tries an engine and measures everything.
pub fn engine(choice: EngineChoice) -> Trial {
    let mut trial = Trial::begin(choice.name(), choice, TransportChoice::Auto);
    if trial.works() {
        trial.costs.extend(FURTHER.iter().map(|probe| probe.cost(choice)));
    }
    trial
}

/// What is taken if nobody says otherwise.
pub fn automatic() -> Trial {
    Trial::begin("auto", EngineChoice::Auto, TransportChoice::Auto)
}

/// Tries KVM's transports.
pub fn transports() -> Vec<Trial> {
    let all = [("pio", TransportChoice::Pio), ("vmcall", TransportChoice::Vmcall)];
    let mut trials = all.map(|(name, choice)| Trial::begin(name, EngineChoice::Kvm, choice));
    for trial in &mut trials {
        if let Some(other) = trial.transport.filter(|used| *used != trial.name) {
            trial.why_not = Some(format!("the engine took {other} instead"));
        }
    }
    trials.into()
}

impl Trial {
    fn begin(name: &'static str, engine: EngineChoice, transport: TransportChoice) -> Self {
        match HYPERCALL.sample(engine, transport) {
            Ok(sample) => Self::of(name, &sample),
            Err(failure) => Self::failed(name, failure.to_string()),
        }
    }

    /// One that ran a guest.
    pub fn of(name: &'static str, sample: &Sample) -> Self {
        Self {
            name,
            why_not: None,
            engine: Some(sample.engine.name),
            transport: Some(sample.engine.transport),
            detail: Some(sample.engine.detail.clone()),
            startup_ns: Some(sample.startup_ns),
            costs: vec![HYPERCALL.read(sample)],
        }
    }

    /// One that did not.
    pub const fn failed(name: &'static str, why_not: String) -> Self {
        Self {
            name,
            why_not: Some(why_not),
            engine: None,
            transport: None,
            detail: None,
            startup_ns: None,
            costs: Vec::new(),
        }
    }

    /// Whether it can be used.
    pub const fn works(&self) -> bool {
        self.why_not.is_none()
    }

    /// What a hypercall costs, if it was measured.
    pub fn hypercall_ns(&self) -> Option<f64> {
        self.costs.first().and_then(|cost| cost.ns)
    }
}

impl Probe {
    fn sample(&self, engine: EngineChoice, transport: TransportChoice) -> Result<Sample, Failure> {
        let machine = Machine { mem_bytes: 64 << 20, engine, transport, deadline: Duration::from_secs(10) };
        let Some(workload) = Workload::named(self.workload) else {
            return Err(Failure::Start(format!("no workload {}; this is a bug in Paravane", self.workload)));
        };
        let Some(technique) = Technique::named(self.technique) else {
            return Err(Failure::Start(format!(
                "no technique {}; this is a bug in Paravane",
                self.technique
            )));
        };
        measure(technique, workload, &machine, &mut launch::run)
    }

    fn cost(&self, engine: EngineChoice) -> Cost {
        match self.sample(engine, TransportChoice::Auto) {
            Ok(sample) => self.read(&sample),
            Err(failure) => self.unknown(failure.to_string()),
        }
    }

    const fn unknown(&self, why: String) -> Cost {
        Cost { what: self.what, technique: self.technique, ns: None, count: 0, why_not: Some(why) }
    }

    fn read(&self, sample: &Sample) -> Cost {
        let measured = (self.read)(sample);
        Cost {
            what: self.what,
            technique: self.technique,
            ns: measured.map(|(ns, _)| ns),
            count: measured.map_or(0, |(_, count)| count),
            why_not: measured.is_none().then(|| "the guest did not say".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_are_workloads_that_exist() {
        for probe in FURTHER.iter().chain([&HYPERCALL]) {
            assert!(Workload::named(probe.workload).is_some(), "{}", probe.what);
            assert!(Technique::named(probe.technique).is_some(), "{}", probe.what);
        }
    }
}
