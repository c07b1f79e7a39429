//! `paravane compare`: the comparison, with progress on a terminal; or recorded ones, read back.

mod changes;
mod page;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use serde::Serialize;

use self::page::Page;
use super::engine_options::{TransportArg, technique_names};
use super::fidelity::{self, Asked};
use super::progress::ProgressLine;
use super::{print, size, status, terminal};
use crate::compare::{
    Comparison, Machine, Settings, SideBySide, View, WORKLOADS, Workload, compare, reading, side_text, text,
};
use crate::host::{busy_poll, random};
use crate::launch;
use crate::launch::EngineChoice;
use crate::technique::{TECHNIQUES, Technique};
use crate::text::printable::path;

/// What techniques are compared with when nothing is said.
const BASELINE: &str = "trap";
/// How wide tables are where there is no terminal.
const WIDTH: usize = 120;

const EXAMPLES: &str = "\
Examples:
  paravane compare                                   every workload, every technique that works here
  paravane compare --workload map-512 --repeat 5     the median of five, in detail
  paravane compare --technique trap,translate        these two
  paravane compare --suite                           all of lmbench's programs, and natively on this host
  paravane compare --engine all                      the same on every engine, side by side
  paravane compare --busy-poll 0                     with vCPUs and devices that sleep at once
  paravane compare --repeat 10 --json > a.json       everything, every run included
  paravane compare a.json b.json                     what changed from a to b beyond noise
  paravane compare --repeat 10 --html report.html    charts of it, on one page for a browser
  paravane compare a.json --html report.html         those of a result that exists
  paravane compare --fidelity                        which technique answers as the machine would

The first table has a row for each workload and a column for each technique, in the order in which the field found \
them: the time against the baseline's, then the exits. The second has the cycles of single operations. A technique that \
cannot be used on this host is named, with the reason; it is a failure only if --technique names it.

The JSON of one engine has `host`, `engine` and `workloads`. That of several (or of `all`, however many that \
turn out to be) has `host`, `engines`, a list of the former, and `trap_differences`. `savings` of a workload are against \
`baseline`, by technique.

With --fidelity, a right result is the one that is documented: under `trap` the instructions go wrong in silence.

Each repetition does everything once, in an order of its own by chance, which follows from --seed. With several \
repetitions, medians have an interval that holds the true one in 95 of 100 cases (or in as many as so few runs allow, \
which is said), and runs that are far from the others are named. They count.

Exit status: 0 if every result was right, 1 if not or if no guest could be started, 2 for a usage error. Of two recorded \
results: 0 if nothing is worse beyond noise, 8 if something is, 1 if a file cannot be read.";

/// What has no meaning for results that exist.
const MEASURING: [&str; 15] = [
    "workload",
    "suite",
    "technique",
    "baseline",
    "repeat",
    "warm_up",
    "seed",
    "list",
    "fidelity",
    "mem",
    "engine",
    "transport",
    "busy_poll",
    "timeout",
    "details",
];

/// `--engine` where there may be several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engines {
    /// The best that works here, as for `run`
    Auto,
    /// KVM, through /dev/kvm
    Kvm,
    /// A sandboxed process; needs no /dev/kvm
    Process,
    /// KVM and processes, as far as they work here
    All,
}

impl Engines {
    const fn choices(self) -> &'static [EngineChoice] {
        match self {
            Self::Auto => &[EngineChoice::Auto],
            Self::Kvm => &[EngineChoice::Kvm],
            Self::Process => &[EngineChoice::Process],
            Self::All => &[EngineChoice::Kvm, EngineChoice::Process],
        }
    }
}

/// Arguments of `paravane compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CompareArgs {
    /// Measure nothing: show what changed from the first of two results of --json to the second, or, with --html, make
    /// the page of one
    #[arg(value_name = "RESULT", num_args = 1..=2, conflicts_with_all = MEASURING)]
    files: Vec<PathBuf>,
    /// Only these workloads [default: all but those of the suite that --list says so of]
    #[arg(long, short, value_name = "NAME", num_args = 1.., value_delimiter = ',', value_parser = workload_names())]
    workload: Vec<String>,
    /// Only the user programs, all of them: lmbench's, and a storm of processes; beside them, the same on this host
    #[arg(long, conflicts_with = "workload")]
    suite: bool,
    /// Only these techniques [default: all that can be used here]
    #[arg(long, short, value_name = "NAME", num_args = 1.., value_delimiter = ',', value_parser = technique_names())]
    technique: Vec<String>,
    /// Compare the others with this technique, which is measured too [default: trap, if it is measured]
    #[arg(long, value_name = "NAME", value_parser = technique_names())]
    baseline: Option<String>,
    /// Measure each so many times and show the median
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    repeat: u16,
    /// Run each so many times before, uncounted [default: 1 if it is measured several times]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1000))]
    warm_up: Option<u16>,
    /// The order of the runs, as a result names it [default: by chance]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Of two results: a median that moved by at most so many percent is neither better nor worse
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0, value_parser = percent, requires = "files")]
    tolerance: f64,
    /// Show every workload in detail: exits by cause, batches, other work, spread of times [default: if there is one]
    #[arg(long)]
    details: bool,
    /// Print JSON, with the raw figures of every run
    #[arg(long)]
    json: bool,
    /// Write a page with charts, which a browser shows without network
    #[arg(long, value_name = "FILE", conflicts_with_all = ["list", "fidelity", "tolerance"])]
    html: Option<PathBuf>,
    /// List workloads and techniques, measure nothing
    #[arg(long)]
    list: bool,
    /// Show no speed, but answers: whether each technique executes the sensitive instructions that do not trap as a
    /// machine does
    #[arg(long, conflicts_with_all = ["workload", "suite", "baseline", "repeat", "warm_up", "seed", "list"])]
    fidelity: bool,
    /// Memory of each guest, as for `run`
    #[arg(long, short, value_name = "SIZE", default_value = "64M", value_parser = size::memory)]
    mem: u64,
    /// What runs the guests' code; several engines are shown side by side
    #[arg(long, value_enum, num_args = 1.., value_delimiter = ',', default_value = "auto")]
    engine: Vec<Engines>,
    /// How hypercalls enter the host on KVM
    #[arg(long, value_enum, default_value_t)]
    transport: TransportArg,
    /// Microseconds for which a vCPU or a device without work polls before it sleeps; 0 turns polling off
    /// [default: 200, and 0 where there is one CPU]
    #[arg(long, value_name = "US", value_parser = size::microseconds)]
    busy_poll: Option<u32>,
    /// How long one boot may take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = size::duration)]
    timeout: Duration,
}

/// Short enough to be typed again.
fn seed() -> u64 {
    let mut bytes = [0; 2];
    // If there are no random bytes, zeroes are a seed, too.
    random::fill(&mut bytes);
    u16::from_le_bytes(bytes).into()
}

fn percent(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err("not a percentage".to_owned()) }
}

/// The longest result that is read, in MiB: several times that of a thousand runs of everything.
const LONGEST_MIB: u64 = 256;

/// A recorded result.
fn read(file: &Path) -> anyhow::Result<String> {
    read_within(file, LONGEST_MIB << 20).with_context(|| format!("cannot read {}", path(file)))
}

fn read_within(file: &Path, longest: u64) -> io::Result<String> {
    let mut text = String::new();
    if File::open(file)?.take(longest.saturating_add(1)).read_to_string(&mut text)? as u64 > longest {
        return Err(io::Error::other(format!("it is longer than {LONGEST_MIB} MiB")));
    }
    Ok(text)
}

fn workload_names() -> PossibleValuesParser {
    PossibleValuesParser::new(WORKLOADS.iter().map(|w| w.name))
}

/// Neither one result to make a page of, nor two to compare.
#[derive(Debug, thiserror::Error)]
#[error("two results are compared (without --html), and a page is made of one (with --html)")]
pub(super) struct WrongNumber;

/// Compares; the exit status of the process.
pub(super) fn run(args: &CompareArgs) -> anyhow::Result<u8> {
    if args.list {
        print(&list())?;
        return Ok(0);
    }
    let width = terminal::columns().unwrap_or(WIDTH);
    match (&args.files[..], &args.html) {
        ([], _) => {}
        ([file], Some(html)) => return page::of_recorded(file, html),
        ([first, second], None) => return changes::run(args, first, second, width),
        _ => return Err(WrongNumber.into()),
    }
    args.busy_poll.into_iter().for_each(busy_poll::set_longest_us);
    let engines = engines(&args.engine);
    let machine = |engine: &EngineChoice| Machine {
        mem_bytes: args.mem,
        engine: *engine,
        transport: args.transport.into(),
        deadline: args.timeout,
    };
    let named = !args.technique.is_empty();
    if args.fidelity {
        let techniques = techniques(&args.technique, None);
        let machines = engines.iter().map(machine).collect();
        let view = View { details: args.details, width };
        return fidelity::run(Asked { techniques, named, machines, json: args.json }, &view);
    }
    let settings = Settings {
        workloads: selected(&args.workload, args.suite),
        techniques: techniques(&args.technique, args.baseline.as_deref()),
        baseline: args.baseline.as_deref().and_then(Technique::named).map_or(BASELINE, |t| t.name),
        named,
        repeat: usize::from(args.repeat),
        warm_up: args.warm_up.map_or(usize::from(args.repeat > 1), usize::from),
        seed: args.seed.unwrap_or_else(seed),
        machines: engines.iter().map(machine).collect(),
    };
    let page = args.html.as_deref().map(Page::open).transpose()?;
    let mut line = ProgressLine::stderr();
    let comparisons = compare(&settings, launch::run, |p| {
        line.show(p.done, p.total, &format!("{} by {} on {}", p.workload, p.technique, p.engine.name()));
    });
    drop(line);
    if args.json {
        tell_problems(&comparisons);
    }
    let all = args.engine.contains(&Engines::All);
    let view = View { details: args.details || settings.workloads.len() == 1, width };
    let ok = match <[_; 1]>::try_from(comparisons) {
        Ok([one]) if !all => {
            page.map_or(Ok(()), |page| page.write(&one))?;
            show(args.json, &one, |one| text(one, &view))?;
            one.ok()
        }
        several => {
            let several = several.map_or_else(|several| several, Vec::from);
            let side = SideBySide::new(several, all).context("no engine was named")?;
            page.map_or(Ok(()), |page| page.write(&side))?;
            show(args.json, &side, |side| side_text(side, &view))?;
            side.ok()
        }
    };
    Ok(if ok { 0 } else { status::HOST_ERROR })
}

fn show<T: Serialize>(json: bool, result: &T, text: impl Fn(&T) -> String) -> anyhow::Result<()> {
    let out = if json { format!("{}\n", serde_json::to_string_pretty(result)?) } else { text(result) };
    Ok(print(&out)?)
}

/// In the text they stand where they belong; a JSON file is not read at once.
fn tell_problems(comparisons: &[Comparison]) {
    for comparison in comparisons {
        for workload in &comparison.workloads {
            for problem in &workload.problems {
                eprintln!("paravane: {} on {}: {problem}", workload.name, comparison.asked);
            }
        }
    }
}

/// The engines that were named, each once.
fn engines(args: &[Engines]) -> Vec<EngineChoice> {
    let mut engines = Vec::new();
    for engine in args.iter().flat_map(|arg| arg.choices()) {
        if !engines.contains(engine) {
            engines.push(*engine);
        }
    }
    engines
}

/// The workloads with these names, or the whole suite, or what is measured when nothing is said; in the list's order.
fn selected(names: &[String], suite: bool) -> Vec<Workload> {
    let wanted = |w: &Workload| match names {
        [] if suite => w.program.is_some(),
        [] => !w.on_request,
        names => names.iter().any(|name| name == w.name),
    };
    WORKLOADS.iter().filter(|w| wanted(w)).copied().collect()
}

/// The techniques with these names, and the baseline if one was named, in the order of the table; all if there are no
/// names.
fn techniques(names: &[String], baseline: Option<&str>) -> Vec<&'static Technique> {
    let is_named = |t: &Technique| names.is_empty() || names.iter().any(|name| name == t.name);
    TECHNIQUES.iter().filter(|t| is_named(t) || baseline == Some(t.name)).collect()
}

fn list() -> String {
    let mut out = "Workloads\n".to_owned();
    for w in WORKLOADS {
        let when = if w.on_request { " (with --suite, or by its name)" } else { "" };
        out += &format!("  {:<18} {}{when}\n", w.name, w.about);
    }
    out += "Techniques\n";
    for t in reading(&TECHNIQUES.each_ref().map(|t| t.name)).into_iter().filter_map(Technique::named) {
        let why_not = (t.available)().err().map(|why| format!(" (not on this host: {why})"));
        out += &format!("  {:<18} {}{}\n", t.name, t.about, why_not.unwrap_or_default());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_selected_by_name() {
        let select = |names: &[&str], suite| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            selected(&names, suite).iter().map(|w| w.name).collect::<Vec<_>>()
        };
        assert_eq!(
            select(&["timer-1000", "null-call", "lat_pipe"], false),
            ["null-call", "timer-1000", "lat_pipe"]
        );
        let (usual, suite) = (select(&[], false), select(&[], true));
        assert!(usual.contains(&"map-512") && usual.contains(&"storm") && !usual.contains(&"lat_pipe"));
        assert!(suite.contains(&"storm") && suite.contains(&"lat_pipe") && !suite.contains(&"map-512"));
    }

    #[test]
    fn a_result_without_an_end_is_refused() {
        let error = read_within(Path::new("/dev/zero"), 4096).unwrap_err();
        assert_eq!(error.to_string(), "it is longer than 256 MiB");
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let length = std::fs::metadata(own).unwrap().len();
        assert!(
            read_within(Path::new(own), length).is_ok() && read_within(Path::new(own), length - 1).is_err()
        );
    }

    #[test]
    fn a_baseline_is_measured_whether_it_is_listed_or_not() {
        let names = |names: &[&str], baseline| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            techniques(&names, baseline).iter().map(|t| t.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&[], None).len(), TECHNIQUES.len());
        assert_eq!(names(&["trap"], None), ["trap"]);
        assert_eq!(names(&["trap"], Some("pv")), ["pv", "trap"]);
        assert!(Technique::named(BASELINE).is_some());
    }

    #[test]
    fn engines_are_taken_once_each() {
        use EngineChoice::{Auto, Kvm, Process};
        assert_eq!(engines(&[Engines::All]), [Kvm, Process]);
        assert_eq!(engines(&[Engines::Process, Engines::All, Engines::Process]), [Process, Kvm]);
        assert_eq!(engines(&[Engines::Auto]), [Auto]);
    }

    #[test]
    fn the_list_names_everything() {
        let list = list();
        for name in ["map-4096", "address-space", "pv", "trap"] {
            assert!(list.lines().any(|l| l.split_whitespace().next() == Some(name)), "{name}");
        }
        let column = |w: &Workload| list.lines().find_map(|line| line.find(w.about));
        assert!(WORKLOADS.iter().all(|w| column(w) == Some(21)), "in columns:\n{list}");
    }
}
