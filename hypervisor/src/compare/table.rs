//! The comparison as text: the overview, then, if asked for, a table for each workload and the exits behind it.

use std::fmt::{self, Write};

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

use super::comparison::Comparison;
use super::host::HostFacts;
use super::overview::write_overview;
use super::paragraphs::write_paragraphs;
use super::result::{Saving, TechniqueResult, WorkloadResult};
use super::statistics::Spread;
use crate::ledger::{BatchSizes, HardwareExit, HardwareExits, Region, WorkRow, exit_table, nanos, nanos_f64};

/// How a result is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Whether each workload is shown in detail after the overview.
    pub details: bool,
    /// How many characters a line may have.
    pub width: usize,
}

/// Formats everything.
pub fn text(comparison: &Comparison, view: &View) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, comparison, view);
    out
}

fn write(out: &mut String, comparison: &Comparison, view: &View) -> fmt::Result {
    write_host(out, &comparison.host)?;
    write_engine(out, comparison)?;
    write_guests(out, comparison)?;
    write_overview(out, comparison, view)?;
    if view.details {
        for workload in &comparison.workloads {
            write_workload(out, workload, comparison)?;
        }
    } else {
        write_paragraphs(out, comparison, view)?;
    }
    write_notes(out, comparison.notes, comparison.debug_build, view)
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
    let mut times = match comparison.repeat {
        1 => "measured once".to_owned(),
        n => format!("median of {n} runs"),
    };
    if comparison.warm_up != 0 {
        times += &format!(" after {} that do not count", comparison.warm_up);
    }
    let poll = match comparison.busy_poll_us {
        0 => "no busy polling".to_owned(),
        us => format!("busy polling for {us} us at most"),
    };
    writeln!(out, "Guests  {} MiB each, {times}, {poll}", comparison.mem_bytes >> 20)?;
    writeln!(out, "Order   by chance: --seed {}\n", comparison.seed)
}

pub(super) fn write_notes(out: &mut String, notes: &[&str], debug_build: bool, view: &View) -> fmt::Result {
    if !view.details {
        let more = "Exits by cause, other work, the spread of times: --details. Every run: --json. Charts: --html FILE.";
        writeln!(out, "{}", wrapped("", more, view.width))?;
    }
    writeln!(out, "Notes")?;
    let debug = debug_build.then_some("This is a build without optimization: its times mean little.");
    notes.iter().copied().chain(debug).try_for_each(|note| out.write_str(&wrapped("  * ", note, view.width)))
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
    if let Some(run) = workload.native_program {
        let (all, each) = (nanos(run.ns), nanos_f64(run.each_ns()));
        writeln!(out, "natively, on this host's kernel: {} operations in {all}, {each} each", run.ops)?;
    }
    let columns = comparison.columns();
    let results = || columns.iter().filter_map(|name| Some((name, workload.result(name)?)));
    for (name, result) in results() {
        counts(result).iter().try_for_each(|line| writeln!(out, "{name}: {line}"))?;
    }
    for (name, result) in results().filter(|(_, result)| !result.exits.is_empty()) {
        writeln!(out, "\n{name}: exits by cause")?;
        // The table shows a region; a result is what was kept of one.
        let region =
            Region { ns: result.ns, exits: result.exits.clone(), batches: Vec::new(), work: Vec::new() };
        write!(out, "{}", exit_table(&region))?;
    }
    writeln!(out)
}

/// Sizes of batches, why they were sent, work that is no exit, what the host's kernel counted: a line each.
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
    if !result.work.is_empty() {
        let amounts: Vec<String> =
            result.work.iter().map(|WorkRow { kind, count }| format!("{kind} {count}")).collect();
        lines.push(format!("beside its exits: {}", amounts.join(", ")));
    }
    if let Some(HardwareExits { extension, exits, .. }) = &result.hardware
        && !exits.is_empty()
    {
        let exits: Vec<String> =
            exits.iter().map(|HardwareExit { name, count }| format!("{name} {count}")).collect();
        lines.push(format!("its exits by {extension}'s names: {}", exits.join(", ")));
    }
    if let Some((_, exits)) = result.whole.kernel_statistics.iter().find(|(name, _)| name == "exits") {
        let traps = result.whole.traps;
        lines.push(format!(
            "in the whole boot {traps} exits reached us, and the host's kernel counted {exits}"
        ));
    }
    lines
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
        header.extend(["interval", "fastest .. slowest"]);
    }
    let compared = !workload.savings.is_empty();
    if compared {
        header.extend(["traps saved", "time saved"]);
    }
    table.set_header(header);
    for name in comparison.columns() {
        let Some(result) = workload.result(name) else { continue };
        let mut cells = row(name, result, repeat);
        if compared {
            let saved = workload.savings.get(name);
            cells.extend(
                [saved.map(|saved| saved.traps), saved.map(|saved| saved.time)].map(percent).map(right),
            );
        }
        table.add_row(cells);
    }
    table
}

/// A paragraph behind `mark`, in lines that fit.
pub(super) fn wrapped(mark: &str, text: &str, width: usize) -> String {
    let indent = " ".repeat(mark.len());
    let mut out = mark.to_owned();
    let mut used = mark.len();
    for (n, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if n != 0 && used + 1 + length > width {
            out = format!("{out}\n{indent}");
            used = mark.len();
        } else if n != 0 {
            out.push(' ');
            used += 1;
        }
        out += word;
        used += length;
    }
    out.push('\n');
    out
}

fn row(name: &str, result: &TechniqueResult, repeat: usize) -> Vec<Cell> {
    let mut cells = vec![
        Cell::new(name),
        right(result.ops),
        right(result.traps),
        right(format!("{:.3}", result.each_traps())),
        right(nanos(result.ns)),
        right(nanos_f64(result.each_ns())),
        right(nanos(result.host_ns)),
    ];
    if repeat > 1 {
        cells.extend(result.spread.as_ref().map_or_else(|| ["-"; 2].map(right), spread));
    }
    cells
}

/// Where the true median is, and the whole range with its outliers.
fn spread(spread: &Spread) -> [Cell; 2] {
    let Spread { low, high, min, max, outliers, .. } = spread;
    let far = match outliers.len() {
        0 => String::new(),
        n => format!(" ({n} far)"),
    };
    let ends = |a: &f64, b: &f64, between: &str| format!("{}{between}{}", nanos_f64(*a), nanos_f64(*b));
    [right(ends(low, high, " - ")), right(ends(min, max, " .. ") + &far)]
}

pub(super) fn right(text: impl ToString) -> Cell {
    Cell::new(text.to_string()).set_alignment(CellAlignment::Right)
}

/// What is saved, in percent of what the baseline needed.
pub(super) fn percent(saving: Option<Saving>) -> String {
    saving.and_then(|saving| saving.percent).map_or_else(|| "-".to_owned(), |p| format!("{p:.2}%"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::NOTES;

    #[test]
    fn notes_fit_a_terminal_and_lose_nothing() {
        for note in NOTES {
            let lines = wrapped("  * ", note, 80);
            assert!(lines.lines().all(|line| line.len() <= 80 && line.starts_with("  ")), "{lines}");
            assert!(lines.split_whitespace().skip(1).eq(note.split_whitespace()));
        }
    }
}
