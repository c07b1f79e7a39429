//! The changes as text: what differs around the two first, then a row for each change, then what there is none of.

use std::fmt::{self, Write};

use super::super::table::{new_table, right, wrapped};
use super::{Change, Changes, Measure, Verdict};
use crate::ledger::nanos_f64;
use crate::text::printable::printable;

/// How many names of what only one has are listed.
const LISTED: usize = 8;

/// Formats everything, in lines of `width`.
pub fn changes_text(changes: &Changes, width: usize) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, changes, width);
    out
}

fn write(out: &mut String, changes: &Changes, width: usize) -> fmt::Result {
    for difference in &changes.circumstances {
        let super::Difference { what, first, second } = difference;
        let line = format!("{what}: {} before, {} now", printable(first), printable(second));
        out.write_str(&wrapped("NOT THE SAME  ", &line, width))?;
    }
    if !changes.circumstances.is_empty() {
        writeln!(out)?;
    }
    write_rows(out, changes)?;
    write_sums(out, changes, width)?;
    for (whose, names) in [("first", &changes.only_first), ("second", &changes.only_second)] {
        if !names.is_empty() {
            let shown: Vec<String> =
                names.iter().take(LISTED).map(|name| printable(name).to_string()).collect();
            let more = names.len().saturating_sub(LISTED);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            let line = format!("Only in the {whose}: {}{more}.", shown.join(", "));
            out.write_str(&wrapped("", &line, width))?;
        }
    }
    Ok(())
}

fn write_rows(out: &mut String, changes: &Changes) -> fmt::Result {
    let mut told: Vec<&Change> = changes.rows.iter().filter(|row| is_told(row)).collect();
    // What got worse comes first, the most first.
    told.sort_by(|a, b| {
        let weight = |row: &Change| row.percent.unwrap_or(f64::INFINITY);
        weight(b).total_cmp(&weight(a))
    });
    let Some(first) = told.first() else { return Ok(()) };
    let engines = changes.rows.iter().any(|row| row.engine != first.engine);
    let mut table = new_table();
    let engine_title = engines.then_some("engine");
    table.set_header(engine_title.into_iter().chain([
        "workload",
        "technique",
        "",
        "before",
        "now",
        "change",
        "p",
        "",
    ]));
    for row in told {
        let [first, second] =
            [(row.first, &row.first_spread), (row.second, &row.second_spread)].map(|(value, spread)| {
                let ends = spread.as_ref().filter(|s| s.low < s.high);
                let ends = ends.map(|s| format!(" [{}, {}]", row.shown(s.low), row.shown(s.high)));
                right(row.shown(value) + &ends.unwrap_or_default())
            });
        let names = [Some(&row.engine).filter(|_| engines), Some(&row.workload), Some(&row.technique)];
        let mut cells: Vec<_> =
            names.into_iter().flatten().map(|name| printable(name).to_string().into()).collect();
        let percent = row.percent.map_or_else(|| "from 0".to_owned(), |p| format!("{p:+.1}%"));
        let p_value = if row.p_value == 0.0 { "every run".to_owned() } else { format!("{:.5}", row.p_value) };
        cells.extend([row.measure.name().into(), first, second, right(percent), right(p_value)]);
        cells.push(if row.verdict == Verdict::OtherWork { "OTHER WORK" } else { row.verdict.name() }.into());
        table.add_row(cells);
    }
    writeln!(out, "{table}\n")
}

fn is_told(row: &Change) -> bool {
    matches!(row.verdict, Verdict::Better | Verdict::Worse | Verdict::OtherWork)
}

fn write_sums(out: &mut String, changes: &Changes, width: usize) -> fmt::Result {
    let count = |verdict| changes.count(verdict);
    let sums = format!(
        "{} compared: {} worse, {} better, {} changed by at most {} %, {} within noise.",
        changes.rows.len(),
        count(Verdict::Worse),
        count(Verdict::Better),
        count(Verdict::Little),
        changes.tolerance_percent,
        count(Verdict::Noise),
    );
    out.write_str(&wrapped("", &sums, width))?;
    let too_few = count(Verdict::TooFew);
    if too_few != 0 {
        let line = format!("{too_few} have too few runs to tell a change from noise.");
        out.write_str(&wrapped("", &line, width))?;
    }
    let fewest = changes.rows.iter().filter_map(Change::fewest_runs).min().unwrap_or(1);
    if fewest < changes.runs_wanted && !changes.rows.is_empty() {
        let line = format!(
            "Some were measured {fewest} times; to tell a single change from noise among so many, measure each with \
             --repeat {}.",
            changes.runs_wanted
        );
        out.write_str(&wrapped("", &line, width))?;
    }
    let rule = "Before and now are medians with intervals of 95 % where the runs are enough. A change is one that a \
                permutation test of ranks tells from noise, with at most 1 in 20 of those told being wrong on average \
                (Benjamini and Hochberg); or a count that is the same in every run before, and another one in every \
                run now.";
    out.write_str(&wrapped("", rule, width))
}

impl Change {
    fn shown(&self, value: f64) -> String {
        match self.measure {
            Measure::Time => nanos_f64(value),
            Measure::Cycles => format!("{value:.1}"),
            Measure::Exits => format!("{value:.0}"),
        }
    }

    /// Of the two results the fewer runs; nothing where the counts have no noise.
    fn fewest_runs(&self) -> Option<usize> {
        matches!(self.verdict, Verdict::Noise | Verdict::TooFew)
            .then(|| self.first_runs.min(self.second_runs))
    }
}

impl Measure {
    const fn name(self) -> &'static str {
        match self {
            Self::Time => "time/op",
            Self::Cycles => "cycles",
            Self::Exits => "exits",
        }
    }
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Little => "little",
            Self::Noise => "noise",
            Self::TooFew => "too few runs",
            Self::OtherWork => "other work",
        }
    }
}
