//! The comparison as text: a table for each workload, then the exits behind it.

use std::fmt::{self, Write};

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

use super::comparison::{Comparison, Saved, Saving, TechniqueResult, WorkloadResult};
use super::host::HostFacts;
use crate::ledger::{BatchSizes, Region, exit_table, nanos, nanos_f64};

/// Formats everything.
pub fn text(comparison: &Comparison) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, comparison);
    out
}

fn write(out: &mut String, comparison: &Comparison) -> fmt::Result {
    write_host(out, &comparison.host)?;
    write_engine(out, comparison)?;
    write_guests(out, comparison)?;
    for workload in &comparison.workloads {
        write_workload(out, workload, comparison)?;
    }
    if comparison.workloads.len() > 1 {
        writeln!(out, "{}\n", overview(comparison))?;
    }
    write_notes(out, comparison.notes, comparison.debug_build)
}

pub(super) fn write_host(out: &mut String, host: &HostFacts) -> fmt::Result {
    let HostFacts { cpu, cpus, virtualized, kernel, kvm_module, clocksource, load: _ } = host;
    let known = |fact: &Option<String>| fact.clone().unwrap_or_else(|| "unknown".to_owned());
    let nested = if *virtualized { ", itself a virtual machine" } else { "" };
    writeln!(out, "Host    {} ({cpus} CPUs{nested})", known(cpu))?;
    writeln!(out, "        Linux {}, clock {}", known(kernel), known(clocksource))?;
    match kvm_module {
        Some(module) => writeln!(out, "        KVM module {module}"),
        None => Ok(()),
    }
}

pub(super) fn write_engine(out: &mut String, comparison: &Comparison) -> fmt::Result {
    match &comparison.engine {
        Some(e) => writeln!(out, "Engine  {}, transport {}: {}", e.name, e.transport, e.detail),
        None => writeln!(out, "Engine  {}: no guest ran to its end", comparison.asked),
    }
}

pub(super) fn write_guests(out: &mut String, comparison: &Comparison) -> fmt::Result {
    let times = match comparison.repeat {
        1 => "measured once".to_owned(),
        n => format!("median of {n} runs"),
    };
    let poll = match comparison.busy_poll_us {
        0 => "no busy polling".to_owned(),
        us => format!("busy polling for {us} us at most"),
    };
    writeln!(out, "Guests  {} MiB each, {times}, {poll}\n", comparison.mem_bytes >> 20)
}

pub(super) fn write_notes(out: &mut String, notes: &[&str], debug_build: bool) -> fmt::Result {
    writeln!(out, "Notes")?;
    let debug = debug_build.then_some("This is a build without optimization: its times mean little.");
    notes.iter().copied().chain(debug).try_for_each(|note| out.write_str(&wrapped(note)))
}

pub(super) fn write_title(out: &mut String, workload: &WorkloadResult) -> fmt::Result {
    let unit = workload.techniques.iter().find_map(|(_, result)| result.details.get("unit"));
    let operation = unit.map_or_else(String::new, |unit| format!(" (operation: {unit})"));
    writeln!(out, "{}: {}{operation}", workload.name, workload.about)
}

fn write_workload(out: &mut String, workload: &WorkloadResult, comparison: &Comparison) -> fmt::Result {
    write_title(out, workload)?;
    for problem in &workload.problems {
        writeln!(out, "  NOT OK  {problem}")?;
    }
    for why in &workload.skipped {
        writeln!(out, "  SKIPPED  {why}")?;
    }
    if workload.techniques.is_empty() {
        return writeln!(out);
    }
    writeln!(out, "{}", summary(workload, comparison))?;
    for (name, result) in &workload.techniques {
        counts(result).iter().try_for_each(|line| writeln!(out, "{name}: {line}"))?;
    }
    for (name, result) in &workload.techniques {
        writeln!(out, "\n{name}: exits by cause")?;
        // The table shows a region; a result is what was kept of one.
        let region =
            Region { ns: result.ns, exits: result.exits.clone(), batches: Vec::new(), work: Vec::new() };
        write!(out, "{}", exit_table(&region))?;
    }
    writeln!(out)
}

/// Sizes of batches, why they were sent, and what the host's kernel counted: a line each.
pub(super) fn counts(result: &TechniqueResult) -> Vec<String> {
    let size = |b: &BatchSizes| {
        let BatchSizes { kind, batches, median, max, .. } = b;
        format!("{kind}: {:.1} on average, median {median}, largest {max} ({batches} in all)", b.mean())
    };
    let mut lines: Vec<String> = result.batches.iter().map(size).collect();
    let flushes: Vec<String> =
        result.flushes.iter().filter(|(_, n)| **n != 0).map(|(reason, n)| format!("{reason} {n}")).collect();
    if !flushes.is_empty() {
        lines.push(format!("flushes of the guest's queue, by reason as it says: {}", flushes.join(", ")));
    }
    if let (Some(kicks), Some(suppressed)) =
        (result.details.get("kicks"), result.details.get("kicks-suppressed"))
    {
        lines.push(format!("kicks of the device, as the guest says: {kicks} made, {suppressed} not needed"));
    }
    if let Some((_, exits)) = result.whole.kernel_statistics.iter().find(|(name, _)| name == "exits") {
        let traps = result.whole.traps;
        lines.push(format!(
            "in the whole boot {traps} exits reached us, and the host's kernel counted {exits}"
        ));
    }
    lines
}

/// What is saved, workload by workload.
fn overview(comparison: &Comparison) -> Table {
    let Comparison { techniques, compared, .. } = comparison;
    let columns = |what: &str| {
        let all = techniques.iter().map(|name| format!("{what}, {name}"));
        all.chain(compared.iter().map(|name| saved_label(name, comparison))).collect::<Vec<_>>()
    };
    let mut table = new_table();
    table.set_header([vec![String::new()], columns("traps"), columns("time")].concat());
    for workload in &comparison.workloads {
        let cell = |text: Option<String>| right(text.unwrap_or_else(|| "-".to_owned()));
        let of = |name: &&str| workload.techniques.iter().find(|(n, _)| n == name).map(|(_, result)| result);
        let saved = |name: &&str| workload.saved.iter().find(|(n, _)| n == name).map(|(_, saved)| *saved);
        let percent = |saving: Saving| saving.percent.map(|p| format!("{p:.2}%"));
        let mut row = vec![Cell::new(workload.name)];
        row.extend(techniques.iter().map(|name| cell(of(name).map(|r| r.traps.to_string()))));
        row.extend(compared.iter().map(|name| cell(saved(name).and_then(|s| percent(s.traps)))));
        row.extend(techniques.iter().map(|name| cell(of(name).map(|r| nanos(r.ns)))));
        row.extend(compared.iter().map(|name| cell(saved(name).and_then(|s| percent(s.time)))));
        table.add_row(row);
    }
    table
}

pub(super) fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn summary(workload: &WorkloadResult, comparison: &Comparison) -> Table {
    let repeat = comparison.repeat;
    let mut table = new_table();
    let mut header = vec!["", "operations", "traps", "traps/op", "time", "time/op", "in host"];
    if repeat > 1 {
        header.push("fastest .. slowest");
    }
    table.set_header(header);
    for (name, result) in &workload.techniques {
        table.add_row(row(name, result, repeat));
    }
    for (name, Saved { traps, time }) in &workload.saved {
        let sign = if time.saved < 0 { "-" } else { "" };
        let time_saved = format!("{sign}{}{}", nanos(time.saved.unsigned_abs()), percent(*time));
        let traps_saved = format!("{}{}", traps.saved, percent(*traps));
        let label = saved_label(name, comparison);
        table.add_row([&label, "", &traps_saved, "", &time_saved].map(right));
    }
    table
}

/// "saved", and by which technique if there are several that save something.
pub(super) fn saved_label(technique: &str, comparison: &Comparison) -> String {
    match comparison.compared.len() {
        1 => "saved".to_owned(),
        _ => format!("saved, {technique}"),
    }
}

/// A note as an item of a list, in lines that fit a terminal.
fn wrapped(note: &str) -> String {
    let (mut out, mut width) = ("  *".to_owned(), 3);
    for word in note.split(' ') {
        if width + 1 + word.len() > 100 {
            out += "\n   ";
            width = 3;
        }
        out.push(' ');
        out += word;
        width += 1 + word.len();
    }
    out.push('\n');
    out
}

fn row(name: &str, result: &TechniqueResult, repeat: usize) -> Vec<Cell> {
    let ops = result.ops.max(1) as f64;
    let mut cells = vec![
        Cell::new(name),
        right(result.ops),
        right(result.traps),
        right(format!("{:.3}", result.traps as f64 / ops)),
        right(nanos(result.ns)),
        right(nanos_f64(result.ns as f64 / ops)),
        right(nanos(result.host_ns)),
    ];
    if repeat > 1 {
        let times = || result.runs.iter().map(|run| run.ns);
        let (fastest, slowest) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
        cells.push(right(format!("{} .. {}", nanos(fastest), nanos(slowest))));
    }
    cells
}

pub(super) fn right(text: impl ToString) -> Cell {
    Cell::new(text.to_string()).set_alignment(CellAlignment::Right)
}

fn percent(saving: Saving) -> String {
    saving.percent.map_or_else(String::new, |p| format!(" ({p:.2}%)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::NOTES;

    #[test]
    fn notes_fit_a_terminal_and_lose_nothing() {
        for note in NOTES {
            let lines = wrapped(note);
            assert!(lines.lines().all(|line| line.len() <= 100));
            assert!(lines.split_whitespace().skip(1).eq(note.split_whitespace()));
        }
    }
}
