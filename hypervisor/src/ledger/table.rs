//! The table of exits, in the columns of `perf kvm stat`.

use std::fmt::Write;

use super::region::Region;

/// Formats the exits of a region; times are those of the host's handling, in microseconds.
pub fn exit_table(region: &Region) -> String {
    let total = region.traps();
    let total_ns = region.handling_ns();
    let width = region.exits.iter().map(|row| row.cause.to_string().len()).max().unwrap_or(0).max(4);
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{:>width$} {:>9} {:>9} {:>8} {:>10} {:>10} {:>10}",
        "Exit", "Samples", "Samples%", "Time%", "Min", "Max", "Avg"
    );
    for row in &region.exits {
        let _ = writeln!(
            out,
            "{:>width$} {:>9} {:>8.2}% {:>7.2}% {:>8.2}us {:>8.2}us {:>8.2}us ( +- {:>6.2}% )",
            row.cause.to_string(),
            row.count,
            percent(row.count, total),
            percent(row.ns, total_ns),
            micros(row.min_ns),
            micros(row.max_ns),
            row.avg_ns / 1e3,
            row.error_percent,
        );
    }
    let _ = writeln!(out, "Total samples: {total}, total time in the host: {:.2}us.", micros(total_ns));
    out
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::super::{Cause, Ledger, PrivOp};
    use super::*;

    #[test]
    fn columns_and_shares() {
        let mut ledger = Ledger::new();
        for ns in [1000, 3000] {
            ledger.record(Cause::Hypercall(1), ns);
        }
        ledger.record(Cause::PrivilegedInstruction(PrivOp::Cli), 1000);
        let table = exit_table(&ledger.whole(0));
        let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["Exit", "Samples", "Samples%", "Time%", "Min", "Max", "Avg"]);
        assert_eq!(
            lines[1],
            [
                "hypercall",
                "mmu_update",
                "2",
                "66.67%",
                "80.00%",
                "1.00us",
                "3.00us",
                "2.00us",
                "(",
                "+-",
                "50.00%",
                ")"
            ]
        );
        assert_eq!(lines[2][..4], ["cli", "1", "33.33%", "20.00%"]);
        assert_eq!(lines[3].join(" "), "Total samples: 3, total time in the host: 5.00us.");
    }

    #[test]
    fn an_empty_region_has_a_header_and_a_total() {
        assert_eq!(exit_table(&Ledger::new().whole(0)).lines().count(), 2);
    }
}
