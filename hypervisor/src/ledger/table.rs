//! The table of exits, in the columns of `perf kvm stat`.

use super::region::Region;
use super::tally::Tally;

/// One line of a table: exits that have something in common.
#[derive(Clone, Copy, Debug)]
pub struct StatLine<'a> {
    /// What they have in common.
    pub name: &'a str,
    /// How many.
    pub count: u64,
    /// Nanoseconds that the host spent on them.
    pub ns: u64,
    /// The shortest.
    pub min_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// The mean.
    pub avg_ns: f64,
    /// The standard error of the mean, in percent of it.
    pub error_percent: f64,
}

impl<'a> StatLine<'a> {
    /// The line of a tally.
    pub fn new(name: &'a str, tally: &Tally) -> Self {
        Self {
            name,
            count: tally.count,
            ns: tally.ns,
            min_ns: tally.min_ns,
            max_ns: tally.max_ns,
            avg_ns: tally.mean_ns(),
            error_percent: tally.error_percent(),
        }
    }
}

/// Formats the exits of a region; times are those of the host's handling, in microseconds.
pub fn exit_table(region: &Region) -> String {
    let names: Vec<String> = region.exits.iter().map(|row| row.cause.to_string()).collect();
    let lines: Vec<StatLine<'_>> = region
        .exits
        .iter()
        .zip(&names)
        .map(|(row, name)| StatLine {
            name,
            count: row.count,
            ns: row.ns,
            min_ns: row.min_ns,
            max_ns: row.max_ns,
            avg_ns: row.avg_ns,
            error_percent: row.error_percent,
        })
        .collect();
    stat_table("Exit", &lines, usize::MAX)
}

/// Names up to this length stand before the numbers, on the right; longer ones stand behind them.
const MOST_BEFORE: usize = 44;
/// How wide the numbers of a line are, if none is larger than its column.
const NUMBERS: usize = 76;

/// Formats the first `most` lines of a table. Shares are of all lines.
pub fn stat_table(heading: &str, lines: &[StatLine<'_>], most: usize) -> String {
    let total: u64 = lines.iter().map(|line| line.count).sum();
    let total_ns = lines.iter().fold(0u64, |sum, line| sum.saturating_add(line.ns));
    let shown = lines.get(..most).unwrap_or(lines);
    let names = shown.iter().map(|line| line.name).chain([heading]);
    let width = names.map(|name| name.chars().count()).max().unwrap_or(0);
    let place = |numbers: &str, name: &str| {
        if width <= MOST_BEFORE {
            format!("{name:>width$} {numbers}\n")
        } else {
            format!("{numbers:<NUMBERS$}  {name}\n")
        }
    };
    let mut out = place(
        &format!(
            "{:>9} {:>9} {:>8} {:>10} {:>10} {:>10}",
            "Samples", "Samples%", "Time%", "Min", "Max", "Avg"
        ),
        heading,
    );
    for line in shown {
        let numbers = format!(
            "{:>9} {:>8.2}% {:>7.2}% {:>8.2}us {:>8.2}us {:>8.2}us ( +- {:>6.2}% )",
            line.count,
            percent(line.count, total),
            percent(line.ns, total_ns),
            micros(line.min_ns),
            micros(line.max_ns),
            line.avg_ns / 1e3,
            line.error_percent,
        );
        out += &place(&numbers, line.name);
    }
    out += &format!("Total samples: {total}, total time in the host: {:.2}us.\n", micros(total_ns));
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
    fn long_names_stand_behind_the_numbers() {
        let (short, long, mut tally) = ("short", "l".repeat(MOST_BEFORE + 1), Tally::default());
        tally.add(2_000);
        let lines =
            [StatLine::new(&long, &tally), StatLine::new(short, &tally), StatLine::new(short, &tally)];
        let table = stat_table("Guest code", &lines, 2);
        let shown: Vec<&str> = table.lines().collect();
        assert_eq!(shown.len(), 4, "{table}");
        let column = |line: &str, name: &str| line.find(name).unwrap();
        assert_eq!(column(shown[0], "Guest code"), column(shown[1], &long));
        assert_eq!(column(shown[2], short), column(shown[1], &long));
        assert!(shown[1].contains(" 33.33% "), "of all lines: {table}");
        let table = stat_table("Guest code", &lines[1..], 2);
        assert!(table.lines().nth(1).unwrap().starts_with("     short         1"), "{table}");
    }

    #[test]
    fn an_empty_region_has_a_header_and_a_total() {
        assert_eq!(exit_table(&Ledger::new().whole(0)).lines().count(), 2);
    }
}
