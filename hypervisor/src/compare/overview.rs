//! What is read first: a row for each workload, a column for each technique, each against the baseline.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::comparison::{Comparison, NotHere};
use super::figures::{count, cycles, each, ratio};
use super::grid::Grid;
use super::result::{Cycles, EngineFacts, NotDone, TechniqueResult, WorkloadResult};
use super::table::{View, wrapped};
use super::{Kind, order};
use crate::ledger::nanos;

/// What stands where nothing was done.
const NOTHING: &str = "-";
/// What stands where something failed.
const FAILED: &str = "FAIL";
/// After a median that is far from the minimum.
const NOISY: &str = "~";

/// Writes the tables, and what has to be known of their gaps.
pub(super) fn write_overview(out: &mut String, comparison: &Comparison, view: &View) -> fmt::Result {
    let of = |kinds: [Kind; 2]| -> Vec<&WorkloadResult> {
        comparison.workloads.iter().filter(|w| kinds.contains(&w.kind)).collect()
    };
    let jobs = of([Kind::Job, Kind::Compute]);
    let programs = of([Kind::Program; 2]);
    let nano = of([Kind::Compute, Kind::Nano]);
    if !jobs.is_empty() {
        writeln!(out, "{}\n", caption(comparison))?;
        writeln!(out, "{}", job_table(comparison, &jobs).text(view.width))?;
    }
    if !programs.is_empty() {
        let native = match programs.iter().any(|w| w.native_program.is_some()) {
            true => " native: the same program run by this host's kernel, without any guest.",
            false => "",
        };
        let what = format!("User programs. {}{native}", caption(comparison));
        writeln!(out, "{}", wrapped("", &what, view.width))?;
        writeln!(out, "{}", program_table(comparison, &programs).text(view.width))?;
    }
    if !nano.is_empty() {
        let noisy = nano.iter().any(|w| w.techniques.iter().any(|(_, r)| r.cycles.is_some_and(is_noisy)));
        let noise = if noisy { " ~: the fastest took less than 9 tenths of that." } else { "" };
        let what = "One operation: cycles (of the median round), then exits.";
        let native = match nano.iter().any(|w| w.native.is_some()) {
            true => " native: the same code in this process, where it needs no kernel.",
            false => "",
        };
        writeln!(out, "{}", wrapped("", &format!("{what}{native}{noise}"), view.width))?;
        writeln!(out, "{}", nano_table(comparison, &nano).text(view.width))?;
    }
    write_gaps(out, comparison, view)
}

fn caption(comparison: &Comparison) -> String {
    match comparison.baseline {
        Some(baseline) if comparison.techniques.len() > 1 => {
            format!("Time against {baseline}'s, whose own is shown, then exits to the host.")
        }
        _ => "Time, then exits to the host.".to_owned(),
    }
}

fn job_table(comparison: &Comparison, jobs: &[&WorkloadResult]) -> Grid {
    let mut grid = Grid::new(jobs.iter().map(|w| w.name));
    add_techniques(&mut grid, comparison, jobs);
    grid
}

/// The same, with what the programs take on this host.
fn program_table(comparison: &Comparison, programs: &[&WorkloadResult]) -> Grid {
    let mut grid = Grid::new(programs.iter().map(|w| w.name));
    let cell = |w: &&WorkloadResult| {
        let base = comparison.baseline.and_then(|baseline| w.result(baseline)).filter(|base| base.ns != 0);
        w.native_program.map_or_else(
            || vec![NOTHING.to_owned()],
            |run| vec![base.map_or_else(|| nanos(run.ns), |base| ratio(run.each_ns() / base.each_ns()))],
        )
    };
    grid.column("native", programs.iter().map(cell).collect());
    add_techniques(&mut grid, comparison, programs);
    grid
}

fn add_techniques(grid: &mut Grid, comparison: &Comparison, jobs: &[&WorkloadResult]) {
    for technique in comparison.columns() {
        let cell = |w: &&WorkloadResult| match w.result(technique) {
            Some(result) => vec![time(comparison, w, technique, result), count(result.traps as f64)],
            None => vec![absent(w, technique), String::new()],
        };
        grid.column(technique, jobs.iter().map(cell).collect());
    }
}

/// The baseline's time as it is, others as its multiple.
fn time(
    comparison: &Comparison,
    workload: &WorkloadResult,
    technique: &str,
    result: &TechniqueResult,
) -> String {
    let baseline = comparison.baseline.filter(|baseline| *baseline != technique);
    let other = baseline.and_then(|baseline| workload.result(baseline));
    match other.and_then(|other| result.ratio(other)) {
        Some(value) => ratio(value),
        None => nanos(result.ns),
    }
}

fn absent(workload: &WorkloadResult, technique: &str) -> String {
    if workload.failed(technique) { FAILED.to_owned() } else { NOTHING.to_owned() }
}

fn nano_table(comparison: &Comparison, nano: &[&WorkloadResult]) -> Grid {
    let mut grid = Grid::new(nano.iter().map(|w| w.name));
    if nano.iter().any(|w| w.native.is_some()) {
        let cell =
            |w: &&WorkloadResult| w.native.map_or_else(|| vec![NOTHING.to_owned()], |c| vec![shown(c)]);
        grid.column("native", nano.iter().map(cell).collect());
    }
    for technique in comparison.columns() {
        let cell = |w: &&WorkloadResult| match w.result(technique) {
            Some(result) => {
                let cycles = result.cycles.map_or_else(|| NOTHING.to_owned(), shown);
                vec![cycles, each(result.each_traps())]
            }
            None => vec![absent(w, technique), String::new()],
        };
        grid.column(technique, nano.iter().map(cell).collect());
    }
    grid
}

fn shown(of: Cycles) -> String {
    format!("{}{}", cycles(of.median), if is_noisy(of) { NOISY } else { "" })
}

fn is_noisy(of: Cycles) -> bool {
    of.min < 0.9 * of.median
}

/// What was not measured and why, what failed, and what ran elsewhere: nothing is missing in silence.
fn write_gaps(out: &mut String, comparison: &Comparison, view: &View) -> fmt::Result {
    let start = out.len();
    for (techniques, engine) in elsewhere(comparison) {
        let EngineFacts { name, detail, .. } = engine;
        out.write_str(&wrapped("", &format!("{}: on {name}: {detail}", techniques.join(", ")), view.width))?;
    }
    write_not_here(out, &comparison.unavailable, view)?;
    for ((why, techniques), workloads) in lacking(comparison) {
        let line = format!("{}: not by {}: {why}", workloads.join(", "), techniques.join(", "));
        out.write_str(&wrapped("", &line, view.width))?;
    }
    for (why, workloads) in natively_lacking(comparison) {
        let line = format!("{}: not natively: {why}", workloads.join(", "));
        out.write_str(&wrapped("", &line, view.width))?;
    }
    for workload in &comparison.workloads {
        for problem in &workload.problems {
            writeln!(out, "NOT OK  {}: {problem}", workload.name)?;
        }
    }
    if out.len() != start { writeln!(out) } else { Ok(()) }
}

/// Techniques that this host lacks, by reason.
pub(super) fn write_not_here(out: &mut String, unavailable: &[NotHere], view: &View) -> fmt::Result {
    let mut reasons: Vec<(&str, Vec<&'static str>)> = Vec::new();
    for NotHere { technique, why } in unavailable {
        match reasons.iter_mut().find(|(known, _)| known == why) {
            Some((_, techniques)) => techniques.push(technique),
            None => reasons.push((why, vec![technique])),
        }
    }
    reasons.iter().try_for_each(|(why, techniques)| {
        let line = format!("{}: not on this host: {why}", order::reading(techniques).join(", "));
        out.write_str(&wrapped("", &line, view.width))
    })
}

/// Techniques whose guests did not run on the comparison's engine, by what they ran on.
fn elsewhere(comparison: &Comparison) -> Vec<(Vec<&'static str>, &EngineFacts)> {
    let mut found: Vec<(Vec<&'static str>, &EngineFacts)> = Vec::new();
    for technique in comparison.columns() {
        let engine = comparison.workloads.iter().find_map(|w| Some(&w.result(technique)?.engine));
        let Some(engine) = engine.filter(|engine| Some(*engine) != comparison.engine.as_ref()) else {
            continue;
        };
        match found.iter_mut().find(|(_, known)| *known == engine) {
            Some((techniques, _)) => techniques.push(technique),
            None => found.push((vec![technique], engine)),
        }
    }
    found
}

/// What could not be done: the reason, by which techniques, and in which workloads.
fn lacking(comparison: &Comparison) -> BTreeMap<(&str, Vec<&'static str>), Vec<&'static str>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for workload in &comparison.workloads {
        let mut reasons: BTreeMap<&str, Vec<&'static str>> = BTreeMap::new();
        for (technique, why) in &workload.not_done {
            if let NotDone::Lacking(why) = why {
                reasons.entry(why).or_default().push(technique);
            }
        }
        for (why, techniques) in reasons {
            found.entry((why, order::reading(&techniques))).or_default().push(workload.name);
        }
    }
    found
}

/// Which programs this host did not run, by reason.
fn natively_lacking(comparison: &Comparison) -> BTreeMap<&str, Vec<&'static str>> {
    let mut found: BTreeMap<&str, Vec<&'static str>> = BTreeMap::new();
    for workload in &comparison.workloads {
        if let Some(why) = &workload.native_missing {
            found.entry(why).or_default().push(workload.name);
        }
    }
    found
}
