//! What runs when: each repetition does everything once, in an order of its own by chance.
//!
//! A host that gets warmer or busier meanwhile does so for all alike, the repetitions of one measurement are spread
//! over the whole time, and no measurement always follows the same other one. The order follows from the seed alone.

use super::comparison::{Comparison, Settings, TakingPart, needs_an_engine};
use super::native::Natively;
use super::result::Runs;
use super::sample::{Machine, measure};
use super::statistics::shuffle::Random;
use super::workloads::Workload;
use crate::launch::{Config, EngineChoice, Report};
use crate::technique::Technique;

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

/// One thing that a repetition does, by its places in what is to be done.
#[derive(Clone, Copy, Debug)]
struct Cell {
    workload: usize,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// The code in this process.
    Natively,
    /// A guest on one machine.
    On { technique: usize, machine: usize },
    /// A guest that needs no machine's engine: measured once for all.
    Anywhere { technique: usize },
}

/// What was measured of one workload.
struct Measured {
    /// For each machine.
    runs: Vec<Runs>,
    natively: Natively,
}

/// Measures everything that `settings` asks for, booting guests by means of `boot`; one result for each machine.
///
/// A technique that does not need the machine's engine is measured once for all machines.
pub fn compare<E: std::fmt::Display>(
    settings: &Settings,
    mut boot: impl FnMut(Config) -> Result<Report, E>,
    mut on_progress: impl FnMut(Progress),
) -> Vec<Comparison> {
    let taking_part = TakingPart::of(settings);
    let able = &taking_part.able;
    let mut comparisons: Vec<Comparison> =
        settings.machines.iter().map(|m| Comparison::begin(m, settings, &taking_part)).collect();
    let none = || able.iter().map(|technique| (*technique, Vec::new())).collect();
    let nothing = || Measured {
        runs: settings.machines.iter().map(|_| none()).collect(),
        natively: Natively::default(),
    };
    let mut measured: Vec<Measured> = settings.workloads.iter().map(|_| nothing()).collect();

    let mut cells = cells(settings, able);
    let boots = cells.iter().filter(|cell| !matches!(cell.what, What::Natively)).count();
    let (rounds, mut done) = (settings.warm_up + settings.repeat, 0);
    let mut random = Random::new(settings.seed);
    for round in 0..rounds {
        random.shuffle(&mut cells);
        for cell in &cells {
            let (Some(workload), Some(into)) =
                (settings.workloads.get(cell.workload), measured.get_mut(cell.workload))
            else {
                continue;
            };
            let counts = round >= settings.warm_up;
            let mut run = |technique: &'static Technique, machine: &Machine| {
                let (name, engine, total) = (technique.name, machine.engine, boots * rounds);
                on_progress(Progress { workload: workload.name, technique: name, engine, done, total });
                done += 1;
                measure(technique, workload, machine, &mut boot)
            };
            into.do_cell(cell.what, workload, (able, &settings.machines), counts, &mut run);
        }
    }
    for (workload, measured) in settings.workloads.iter().zip(measured) {
        for (comparison, runs) in comparisons.iter_mut().zip(measured.runs) {
            comparison.add(workload, runs, &measured.natively, settings);
        }
    }
    comparisons
}

/// Everything that a repetition does.
fn cells(settings: &Settings, able: &[&'static Technique]) -> Vec<Cell> {
    let machines = 0..settings.machines.len();
    let of_technique = |(technique, row): (usize, &&'static Technique)| -> Vec<What> {
        if needs_an_engine(row) {
            machines.clone().map(|machine| What::On { technique, machine }).collect()
        } else {
            machines.clone().take(1).map(|_| What::Anywhere { technique }).collect()
        }
    };
    let of_workload = |workload: usize| {
        let guests = able.iter().enumerate().flat_map(of_technique);
        std::iter::once(What::Natively).chain(guests).map(move |what| Cell { workload, what })
    };
    (0..settings.workloads.len()).flat_map(of_workload).collect()
}

impl Measured {
    fn do_cell(
        &mut self,
        what: What,
        workload: &Workload,
        (able, machines): (&[&'static Technique], &[Machine]),
        counts: bool,
        run: &mut impl FnMut(&'static Technique, &Machine) -> Result<super::Sample, super::Failure>,
    ) {
        let (column, on) = match what {
            What::Natively => {
                // What is not counted warms the host here, too.
                self.natively.measure(workload, machines.first(), counts);
                return;
            }
            What::On { technique, machine } => (technique, Some(machine)),
            What::Anywhere { technique } => (technique, None),
        };
        let (Some(technique), Some(machine)) = (able.get(column), machines.get(on.unwrap_or(0))) else {
            return;
        };
        let sample = run(technique, machine);
        let is_for = |index: usize| counts && on.is_none_or(|machine| machine == index);
        for (_, runs) in self.runs.iter_mut().enumerate().filter(|(index, _)| is_for(*index)) {
            if let Some((_, samples)) = runs.get_mut(column) {
                samples.push(sample.clone());
            }
        }
    }
}
