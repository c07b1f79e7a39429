//! What the benchmarks share: arguments, statistics, and the floor that they compare with.
#![allow(dead_code, reason = "each benchmark uses its part")]

pub mod floor;

/// The arguments of a benchmark.
pub struct Options {
    /// The number of measurements of each subject.
    pub rounds: usize,
    /// Whether to print JSON instead of a table.
    pub json: bool,
}

impl Options {
    /// Parses the command line. After a mistake, prints the usage and ends the process.
    pub fn parse(bench: &str, rounds: usize) -> Self {
        let mut options = Self { rounds, json: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--json" => options.json = true,
                // `cargo bench` adds this.
                "--bench" => {}
                "--rounds" => match arguments.next().and_then(|n| n.parse().ok()) {
                    Some(rounds @ 1..) => options.rounds = rounds,
                    _ => usage(bench, "--rounds takes a number from 1 up"),
                },
                other => usage(bench, &format!("unknown argument {other}")),
            }
        }
        options
    }
}

fn usage(bench: &str, mistake: &str) -> ! {
    eprintln!("{mistake}\nusage: cargo bench -p paravane --bench {bench} -- [--rounds N] [--json]");
    std::process::exit(2)
}

/// The median; NaN for an empty series.
pub fn median(series: &[f64]) -> f64 {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.get(middle.wrapping_sub(1))) {
        (Some(above), Some(below)) if sorted.len().is_multiple_of(2) => (above + below) / 2.0,
        (Some(middle), _) => *middle,
        (None, _) => f64::NAN,
    }
}

/// The smallest value; infinite for an empty series.
pub fn least(series: &[f64]) -> f64 {
    series.iter().copied().fold(f64::INFINITY, f64::min)
}
