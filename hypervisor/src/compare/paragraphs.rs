//! A paragraph for each workload: what it costs, by which technique least, and how sure that is.
//!
//! For people who want to know what the overview's row means before they look at its details.

use std::fmt::{self, Write};

use super::comparison::Comparison;
use super::figures::ratio;
use super::result::{TechniqueResult, WorkloadResult};
use super::statistics::Spread;
use super::table::{View, wrapped};
use crate::ledger::{nanos, nanos_f64};

type Named<'a> = (&'static str, &'a TechniqueResult);

/// Writes the paragraphs.
pub(super) fn write_paragraphs(out: &mut String, comparison: &Comparison, view: &View) -> fmt::Result {
    for workload in &comparison.workloads {
        if let Some(text) = paragraph(comparison, workload) {
            out.write_str(&wrapped("  * ", &text, view.width))?;
        }
    }
    writeln!(out)
}

/// Nothing if nothing was measured.
fn paragraph(comparison: &Comparison, workload: &WorkloadResult) -> Option<String> {
    let columns = comparison.columns();
    let results: Vec<Named<'_>> =
        columns.iter().filter_map(|name| Some((*name, workload.result(name)?))).collect();
    let baseline = comparison.baseline.and_then(|name| Some((name, workload.result(name)?)));
    let (name, base) = baseline.or_else(|| results.first().copied())?;
    let WorkloadResult { name: title, about, .. } = workload;
    let mut text =
        format!("{title}: {about}. By {name} {}{}", nanos(base.ns), interval(base.spread.as_ref()));
    text += &match base.exits.first() {
        Some(dearest) if base.exits.len() > 1 => {
            format!(" and {} exits, whose dearest cause is {}.", base.traps, dearest.cause)
        }
        Some(only) => format!(" and {} exits by {}.", base.traps, only.cause),
        None => " and no exit.".to_owned(),
    };
    if results.len() > 1 {
        text += &fastest(&results, (name, base));
        text += &fewest(&results);
    }
    let far: Vec<String> = results.iter().flat_map(far).collect();
    if !far.is_empty() {
        text += &format!(" Far from the others: {}.", far.join(", "));
    }
    Some(text)
}

fn interval(spread: Option<&Spread>) -> String {
    spread.map_or_else(String::new, |s| {
        let sure =
            if s.confidence < 0.95 { format!(" at {:.0} %", 100.0 * s.confidence) } else { String::new() };
        format!(" [{}, {}{sure}]", nanos_f64(s.low), nanos_f64(s.high))
    })
}

fn fastest(results: &[Named<'_>], (base_name, base): Named<'_>) -> String {
    let least = results.iter().min_by(|(_, a), (_, b)| a.each_ns().total_cmp(&b.each_ns()));
    let Some((name, result)) = least else { return String::new() };
    let against = result.ratio(base).map_or_else(String::new, |times| format!(", {} of that", ratio(times)));
    let apart = match (&result.spread, &base.spread) {
        (Some(a), Some(b)) if *name != base_name && a.high >= b.low => " (their intervals overlap)",
        _ => "",
    };
    match *name == base_name {
        true => " None is faster.".to_owned(),
        false => format!(" {name} is the fastest{against}{apart}."),
    }
}

/// Who needs the fewest exits; the first ones, if they are several.
fn fewest(results: &[Named<'_>]) -> String {
    let Some(least) = results.iter().map(|(_, result)| result.traps).min() else { return String::new() };
    let names: Vec<&str> =
        results.iter().filter(|(_, result)| result.traps == least).map(|(name, _)| *name).collect();
    if names.len() == results.len() {
        return String::new();
    }
    let exits = match least {
        0 => "no exit".to_owned(),
        1 => "one exit".to_owned(),
        n => format!("{n} exits, the fewest"),
    };
    let need = if names.len() == 1 { "needs" } else { "need" };
    format!(" {} {need} {exits}.", names.join(", "))
}

/// The runs that are far from the others, by technique.
fn far((name, result): &Named<'_>) -> Vec<String> {
    let outliers = result.spread.as_ref().map_or(&[][..], |spread| &spread.outliers);
    let told = |run: &usize| {
        let ns = result.runs.get(*run).map(|figures| figures.ns)?;
        Some(format!("run {} by {name} ({})", run + 1, nanos(ns)))
    };
    outliers.iter().filter_map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::super::compare;
    use super::*;
    use crate::launch::{Config, Report};
    use crate::ledger::Cause;
    use crate::testing::compare::{GOOD, is_pv, play, settings};

    #[test]
    fn a_paragraph_says_what_it_costs_and_how_sure_that_is() {
        let mut times = [900, 910, 920, 9_000, 930, 940].into_iter();
        let boot = |config: Config| -> Result<Report, String> {
            let (ns, traps) = if is_pv(&config) { (90, 1) } else { (times.next().unwrap() * 1_000, 7) };
            Ok(play(config, GOOD, Cause::PageTableStore, traps, ns))
        };
        let [comparison] = &compare(&settings(6), boot, |_| {})[..] else { panic!() };
        let mut out = String::new();
        write_paragraphs(&mut out, comparison, &View { details: false, width: 200 }).unwrap();
        let text = out.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "* map-512: map, touch, protect and unmap 512 scattered pages. By trap 920 us [900 us, 9.00 ms] and 7 exits by \
             page-table store.",
            "pv is the fastest, .0001 of that.",
            "pv needs one exit.",
            "Far from the others: run ",
            " by trap (9.00 ms).",
        ] {
            assert!(text.contains(part), "{part:?} missing in:\n{text}");
        }
    }
}
