//! Several engines as text: an overview of each, where their counts differ, and, if asked for, a table for each
//! workload with a block of columns for each engine.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use comfy_table::{Cell, Table};

use super::comparison::Comparison;
use super::overview::write_overview;
use super::paragraphs::write_paragraphs;
use super::result::WorkloadResult;
use super::side_by_side::{SideBySide, TrapDifference, results};
use super::table::{self, View, new_table, right, wrapped};
use crate::ledger::{nanos, nanos_f64};

/// Formats everything.
pub fn side_text(side: &SideBySide, view: &View) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, side, view);
    out
}

fn write(out: &mut String, side: &SideBySide, view: &View) -> fmt::Result {
    table::write_host(out, &side.host)?;
    for left in &side.left_out {
        writeln!(out, "        not {}: {}", left.engine, left.why)?;
    }
    for comparison in &side.engines {
        table::write_engine(out, comparison)?;
        table::write_guests(out, comparison)?;
        write_overview(out, comparison, view)?;
        if !view.details {
            write_paragraphs(out, comparison, view)?;
        }
    }
    for difference in &side.trap_differences {
        out.write_str(&wrapped("", &told(difference), view.width))?;
    }
    if !side.trap_differences.is_empty() {
        writeln!(out)?;
    }
    if let Some(first) = side.engines.first().filter(|_| view.details) {
        for workload in &first.workloads {
            write_workload(out, side, first, workload)?;
        }
    }
    table::write_notes(out, side.notes, side.debug_build, view)
}

fn write_workload(
    out: &mut String,
    side: &SideBySide,
    first: &Comparison,
    workload: &WorkloadResult,
) -> fmt::Result {
    table::write_title(out, workload)?;
    writeln!(out, "{}", summary(side, first, workload.name))?;
    for technique in first.columns() {
        if let Some(causes) = causes(side, workload.name, technique) {
            writeln!(out, "\n{technique}: exits by cause, and the host's mean time for each\n{causes}")?;
        }
    }
    for technique in first.columns() {
        write_counts(out, side, workload.name, technique)?;
    }
    writeln!(out)
}

/// "kvm: traps", "kvm: time", ...
fn header(side: &SideBySide, columns: &[&str]) -> Vec<String> {
    let engines = side.engines.iter().map(|c| c.asked);
    let all = engines.flat_map(|engine| columns.iter().map(move |column| format!("{engine}: {column}")));
    std::iter::once(String::new()).chain(all).collect()
}

fn dashes(n: usize) -> impl Iterator<Item = String> {
    std::iter::repeat_n("-".to_owned(), n)
}

fn summary(side: &SideBySide, first: &Comparison, workload: &str) -> Table {
    const COLUMNS: [&str; 4] = ["traps", "time", "time/op", "in host"];
    let mut table = new_table();
    table.set_header(header(side, &COLUMNS));
    for technique in first.columns() {
        let mut row = vec![Cell::new(technique)];
        for comparison in &side.engines {
            match comparison.result(workload, technique) {
                Some(r) => {
                    let each = nanos_f64(r.each_ns());
                    row.extend([r.traps.to_string(), nanos(r.ns), each, nanos(r.host_ns)].map(right));
                }
                None => row.extend(dashes(COLUMNS.len()).map(right)),
            }
        }
        table.add_row(row);
    }
    table
}

/// Cause by cause how often and how long, the costliest first; nothing if there were no exits.
fn causes(side: &SideBySide, workload: &str, technique: &str) -> Option<Table> {
    let results = results(&side.engines, workload, technique);
    let mut cost: BTreeMap<String, u64> = BTreeMap::new();
    for row in results.iter().flat_map(|(_, r)| &r.exits) {
        *cost.entry(row.cause.to_string()).or_default() += row.ns;
    }
    let mut causes: Vec<(String, u64)> = cost.into_iter().collect();
    causes.sort_by_key(|(name, ns)| (std::cmp::Reverse(*ns), name.clone()));
    let mut table = new_table();
    table.set_header(header(side, &["exits", "each"]));
    for (name, _) in &causes {
        let mut row = vec![Cell::new(name)];
        for comparison in &side.engines {
            let exits = comparison.result(workload, technique).map(|r| r.exits.as_slice());
            match exits.unwrap_or_default().iter().find(|row| row.cause.to_string() == *name) {
                Some(exit) => row.extend([right(exit.count), right(nanos_f64(exit.avg_ns))]),
                None => row.extend([right(0), right("-")]),
            }
        }
        table.add_row(row);
    }
    (!causes.is_empty()).then_some(table)
}

/// What all engines agree upon once, the rest engine by engine.
fn write_counts(out: &mut String, side: &SideBySide, workload: &str, technique: &str) -> fmt::Result {
    let results = results(&side.engines, workload, technique);
    let counts: Vec<_> = results.iter().map(|(engine, r)| (engine, table::counts(r))).collect();
    let Some((_, first)) = counts.first() else { return Ok(()) };
    let common = |line: &String| counts.iter().all(|(_, lines)| lines.contains(line));
    for line in first.iter().filter(|line| common(line)) {
        writeln!(out, "{technique}: {line}")?;
    }
    for (engine, lines) in &counts {
        for line in lines.iter().filter(|line| !common(line)) {
            writeln!(out, "{technique} on {engine}: {line}")?;
        }
    }
    Ok(())
}

fn told(difference: &TrapDifference) -> String {
    let list = |counts: &BTreeMap<&'static str, u64>| -> String {
        let all: Vec<String> = counts.iter().map(|(engine, n)| format!("{engine} {n}")).collect();
        all.join(", ")
    };
    let causes: Vec<String> =
        difference.causes.iter().map(|(cause, counts)| format!("{cause} ({})", list(counts))).collect();
    let TrapDifference { workload, technique, traps, .. } = difference;
    format!("{workload} by {technique}: trap counts differ: {}; by cause: {}", list(traps), causes.join("; "))
}
