//! Several engines as text: for each workload one table with a block of columns for each engine.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use comfy_table::{Cell, Table};

use super::comparison::{Comparison, Saving, WorkloadResult};
use super::side_by_side::{SideBySide, TrapDifference, results};
use super::table::{self, new_table, right, saved_label};
use crate::ledger::{nanos, nanos_f64};

/// Formats everything.
pub fn side_text(side: &SideBySide) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, side);
    out
}

fn write(out: &mut String, side: &SideBySide) -> fmt::Result {
    table::write_host(out, &side.host)?;
    for comparison in &side.engines {
        table::write_engine(out, comparison)?;
    }
    for left in &side.left_out {
        writeln!(out, "        not {}: {}", left.engine, left.why)?;
    }
    if let Some(first) = side.engines.first() {
        table::write_guests(out, first)?;
        for workload in &first.workloads {
            write_workload(out, side, first, workload)?;
        }
        writeln!(out, "{}\n", overview(side, first))?;
    }
    table::write_notes(out, side.notes, side.debug_build)
}

fn write_workload(
    out: &mut String,
    side: &SideBySide,
    first: &Comparison,
    workload: &WorkloadResult,
) -> fmt::Result {
    table::write_title(out, workload)?;
    for comparison in &side.engines {
        let same = comparison.workloads.iter().filter(|w| w.name == workload.name);
        for found in same {
            for problem in &found.problems {
                writeln!(out, "  NOT OK  on {}: {problem}", comparison.asked)?;
            }
            for why in &found.skipped {
                writeln!(out, "  SKIPPED  on {}: {why}", comparison.asked)?;
            }
        }
    }
    writeln!(out, "{}", summary(side, first, workload.name))?;
    for &technique in &first.techniques {
        if let Some(causes) = causes(side, workload.name, technique) {
            writeln!(out, "\n{technique}: exits by cause, and the host's mean time for each\n{causes}")?;
        }
    }
    for &technique in &first.techniques {
        write_counts(out, side, workload.name, technique)?;
    }
    for difference in side.trap_differences.iter().filter(|d| d.workload == workload.name) {
        write_difference(out, difference)?;
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
    for &technique in &first.techniques {
        let mut row = vec![Cell::new(technique)];
        for comparison in &side.engines {
            match comparison.result(workload, technique) {
                Some(r) => {
                    let each = nanos_f64(r.ns as f64 / r.ops.max(1) as f64);
                    row.extend([r.traps.to_string(), nanos(r.ns), each, nanos(r.host_ns)].map(right));
                }
                None => row.extend(dashes(COLUMNS.len()).map(right)),
            }
        }
        table.add_row(row);
    }
    for &technique in &first.compared {
        let mut row = vec![Cell::new(saved_label(technique, first))];
        for comparison in &side.engines {
            let saved = comparison.saved(workload, technique);
            row.push(right(percent(saved.map(|saved| saved.traps))));
            row.push(right(percent(saved.map(|saved| saved.time))));
            row.extend([right(""), right("")]);
        }
        table.add_row(row);
    }
    table
}

fn percent(saving: Option<Saving>) -> String {
    saving.and_then(|saving| saving.percent).map_or_else(|| "-".to_owned(), |p| format!("{p:.2}%"))
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

fn write_difference(out: &mut String, difference: &TrapDifference) -> fmt::Result {
    let list = |counts: &BTreeMap<&'static str, u64>| -> String {
        let all: Vec<String> = counts.iter().map(|(engine, n)| format!("{engine} {n}")).collect();
        all.join(", ")
    };
    let causes: Vec<String> =
        difference.causes.iter().map(|(cause, counts)| format!("{cause} ({})", list(counts))).collect();
    let (technique, traps) = (difference.technique, list(&difference.traps));
    writeln!(out, "\n{technique}: trap counts differ: {traps}; by cause: {}", causes.join("; "))
}

/// What is saved, workload by workload and engine by engine.
fn overview(side: &SideBySide, first: &Comparison) -> Table {
    let Comparison { techniques, compared, .. } = first;
    let saved_column = |what: &str, technique: &str| match compared.len() {
        1 => format!("{what} saved"),
        _ => format!("{what} saved, {technique}"),
    };
    let mut columns: Vec<String> = compared.iter().map(|name| saved_column("traps", name)).collect();
    columns.extend(techniques.iter().map(|name| format!("time, {name}")));
    columns.extend(compared.iter().map(|name| saved_column("time", name)));
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut table = new_table();
    table.set_header(header(side, &columns));
    for workload in &first.workloads {
        let mut row = vec![Cell::new(workload.name)];
        for comparison in &side.engines {
            let saved = |technique: &&str| comparison.saved(workload.name, technique);
            let time = |technique: &&str| {
                let result = comparison.result(workload.name, technique);
                result.map_or_else(|| "-".to_owned(), |r| nanos(r.ns))
            };
            row.extend(compared.iter().map(|name| right(percent(saved(name).map(|saved| saved.traps)))));
            row.extend(techniques.iter().map(|name| right(time(name))));
            row.extend(compared.iter().map(|name| right(percent(saved(name).map(|saved| saved.time)))));
        }
        table.add_row(row);
    }
    table
}
