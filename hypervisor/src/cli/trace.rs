//! `paravane trace`: what is in a file that `paravane run --trace` wrote.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use serde_json::json;

use super::paths::Paths;
use super::{input_file, print, size, status};
use crate::host::notice::notice;
use crate::image::GuestKind;
use crate::ledger::nanos;
use crate::text::printable;
use crate::trace::chrome::Chrome;
use crate::trace::filter::Filter;
use crate::trace::format::{Header, ImageFacts};
use crate::trace::places::Places;
use crate::trace::reader::{Entry, Reader};
use crate::trace::summary::{By, Summary};
use crate::trace::timeline::Timeline;

const HELP: &str = "\
Examples:
  paravane trace boot.trace                          by cause, by device, and by function of the guest
  paravane trace boot.trace --by hypercall,vcpu      by something else
  paravane trace boot.trace --marks --cause paging   only between the guest's marks, only for page tables
  paravane trace boot.trace --timeline --from 12ms --to 15ms | less -S
  paravane trace boot.trace --timeline --json | jq 'select(.worked_ns > 100000)'
  paravane trace boot.trace --chrome boot.json       then open https://ui.perfetto.dev and load boot.json

Times are the domain's system time, which begins shortly before the guest's first instruction. For a call by the \
hypercall page, the guest's code is where the page was called from.

Exit status:
  0  the whole trace was read
  1  the file cannot be read, is no trace, or is cut off or damaged: what comes before the damage is shown
  2  the command line makes no sense";

/// How many lines a table of addresses has, unless `--all` are wanted.
const SOME: usize = 20;

/// Arguments of `paravane trace`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct TraceArgs {
    /// The trace; - for standard input
    file: PathBuf,
    /// What to count exits by
    #[arg(long, value_name = "WHAT", num_args = 1.., value_delimiter = ',', default_value = "cause,device,symbol")]
    #[arg(value_parser = PossibleValuesParser::new(By::ALL.map(By::name)))]
    by: Vec<String>,
    /// Show all lines of a table, however many there are
    #[arg(long)]
    all: bool,
    /// Show one line for each exit, in order
    #[arg(long, conflicts_with_all = ["by", "all"])]
    timeline: bool,
    /// Print JSON; with --timeline, an object a line
    #[arg(long)]
    json: bool,
    /// Write Chrome's trace event format to a file, for Perfetto and other viewers
    #[arg(long, value_name = "FILE", conflicts_with_all = ["by", "all", "timeline", "json"])]
    chrome: Option<PathBuf>,
    /// Only exits whose cause has this in its name, or that are of this group or device
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = ONLY)]
    cause: Vec<String>,
    /// Only exits in functions of the guest that have this in their name
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = ONLY)]
    symbol: Vec<String>,
    /// Only exits of this vCPU
    #[arg(long, value_name = "N", help_heading = ONLY)]
    vcpu: Option<u32>,
    /// Only exits from this time on: a number and ns, us, ms, s, m or h; a bare number is seconds
    #[arg(long, value_name = "TIME", value_parser = size::moment, help_heading = ONLY)]
    from: Option<u64>,
    /// Only exits up to this time
    #[arg(long, value_name = "TIME", value_parser = size::moment, help_heading = ONLY)]
    to: Option<u64>,
    /// Only exits between the guest's marks
    #[arg(long, help_heading = ONLY)]
    marks: bool,
    /// The image that was run, for its symbols [default: where the trace says that it was]
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

/// The heading over filters.
const ONLY: &str = "Which exits";

/// Shows a trace; the exit status of the process.
pub(super) fn run(args: &TraceArgs) -> anyhow::Result<u8> {
    let mut paths = Paths::default();
    paths.read("FILE", &args.file);
    args.image.iter().for_each(|path| paths.read("--image", path));
    args.chrome.iter().for_each(|path| paths.write("--chrome", path));
    paths.check()?;
    let name = printable::path(&args.file).to_string();
    let mut trace = open(&args.file)
        .and_then(|input| Ok(Reader::open(input)?))
        .with_context(|| format!("cannot read trace {name}"))?;
    let header = trace.header().clone();
    let places = places(args, &header)?;
    let filter = filter(args, &header, &places)?;
    if let Some(path) = &args.chrome {
        chrome(path, Wanted { trace: &mut trace, filter, places: &places }, &header)?;
    } else if args.timeline {
        let out = BufWriter::new(io::stdout().lock());
        let mut timeline = Timeline::begin(out, &header, &places, args.json)?;
        Wanted { trace: &mut trace, filter, places: &places }.each(|entry, wanted| match entry {
            Entry::Exit(exit) if !wanted => {
                timeline.pass(exit);
                Ok(())
            }
            entry => timeline.add(entry),
        })?;
        timeline.end()?;
    } else {
        let mut summary = Summary::new(&header, &places);
        Wanted { trace: &mut trace, filter, places: &places }.each(|entry, wanted| {
            if let (Entry::Exit(exit), true) = (entry, wanted) {
                summary.add(exit);
            }
            Ok(())
        })?;
        let text = if args.json { json(&summary, &header, &trace)? } else { text(args, &summary, &header) };
        print(&text)?;
    }
    Ok(conclude(&name, &trace))
}

/// A trace, and which of its exits were asked for.
struct Wanted<'a, R> {
    trace: &'a mut Reader<R>,
    filter: Filter,
    places: &'a Places,
}

impl<R: Read> Wanted<'_, R> {
    /// Does something with each exit and each gap, given whether it is wanted, as all gaps are. Returns how many
    /// exits were.
    fn each(mut self, mut work: impl FnMut(&Entry, bool) -> io::Result<()>) -> io::Result<u64> {
        let mut exits = 0;
        for entry in self.trace {
            let wanted = match &entry {
                Entry::Exit(exit) => self.filter.wants(exit, self.places),
                Entry::Lost { .. } => true,
            };
            exits += u64::from(wanted && matches!(entry, Entry::Exit(_)));
            work(&entry, wanted)?;
        }
        Ok(exits)
    }
}

fn open(path: &Path) -> anyhow::Result<Box<dyn Read>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        anyhow::bail!("it is a directory; give a file that `paravane run --trace FILE` wrote");
    }
    Ok(Box::new(BufReader::with_capacity(1 << 16, file)))
}

/// The symbols of the image: the one that is given, or else the one that the trace names, if it is still the same.
fn places(args: &TraceArgs, header: &Header) -> anyhow::Result<Places> {
    let facts = &header.image;
    if let Some(path) = &args.image {
        let bytes = input_file::image(path, u64::MAX)
            .with_context(|| format!("cannot read image {}", printable::path(path)))?;
        if !facts.is(&bytes) {
            let (path, name) = (printable::path(path), printable::printable(&facts.name));
            notice(format_args!(
                "{path} is not the file that was traced ({name}): symbols are right if it is the same build"
            ));
        }
        return Ok(Places::of(&bytes));
    }
    let bytes = match &facts.path {
        None => {
            GuestKind::ALL.map(GuestKind::builtin).into_iter().find(|bytes| facts.is(bytes)).map(Into::into)
        }
        Some(path) => the_same(&PathBuf::from(OsString::from_vec(path.clone())), facts),
    };
    let Some(bytes) = bytes else {
        let name = printable::printable(&facts.name);
        notice(format_args!(
            "no symbols: {name} is not there any more as it was traced; give the image with --image"
        ));
        return Ok(Places::default());
    };
    let places = Places::of(&bytes);
    if places.is_empty() {
        notice("the image has no symbols; give one of the same build that has, with --image");
    }
    Ok(places)
}

/// The file if it is what was traced. The path is a stranger's: only an ordinary file is opened.
fn the_same(path: &Path, facts: &ImageFacts) -> Option<Vec<u8>> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() != facts.length {
        return None;
    }
    input_file::image(path, u64::MAX).ok().filter(|bytes| facts.is(bytes))
}

fn filter(args: &TraceArgs, header: &Header, places: &Places) -> anyhow::Result<Filter> {
    let mut filter = Filter::default();
    filter.symbols.clone_from(&args.symbol);
    filter.vcpu = args.vcpu;
    filter.from = args.from.unwrap_or(0);
    filter.to = args.to.unwrap_or(u64::MAX);
    filter.marked = args.marks;
    filter.only_causes(header, &args.cause)?;
    if !args.symbol.is_empty() && places.is_empty() {
        anyhow::bail!("--symbol needs the image's symbols; give an image that has them with --image");
    }
    Ok(filter)
}

fn chrome<R: Read>(path: &Path, wanted: Wanted<'_, R>, header: &Header) -> anyhow::Result<()> {
    let shown = printable::path(path);
    let places = wanted.places;
    let write = || {
        let out = BufWriter::new(File::create(path)?);
        let mut chrome = Chrome::begin(out, header, places)?;
        let exits = wanted.each(|entry, wanted| if wanted { chrome.add(entry) } else { Ok(()) })?;
        chrome.end()?;
        Ok::<_, io::Error>(exits)
    };
    let exits = write().with_context(|| format!("cannot write {shown}"))?;
    notice(format_args!("{exits} exits are in {shown}; load it at https://ui.perfetto.dev"));
    Ok(())
}

fn text(args: &TraceArgs, summary: &Summary<'_>, header: &Header) -> String {
    let Header { image, technique, engine, transport, .. } = header;
    let about = format!("{} ({technique} on {engine}, {transport})", image.name);
    let all = summary.all();
    let mut out = format!(
        "{}: {} exits in {}, the host at work for {}, the guest waiting for {}\n",
        printable::printable(&about),
        all.count,
        nanos(summary.span_ns()),
        nanos(all.ns),
        nanos(summary.waited_ns())
    );
    for by in By::ALL.into_iter().filter(|by| args.by.iter().any(|name| name == by.name())) {
        let most = if args.all || by != By::Symbol { usize::MAX } else { SOME };
        if let Some(table) = summary.table(by, most) {
            out += &format!("\n{table}");
        }
    }
    if all.count == 0 {
        out += "\nNo exit is both in the trace and asked for.\n";
    }
    out
}

fn json<R: Read>(summary: &Summary<'_>, header: &Header, trace: &Reader<R>) -> anyhow::Result<String> {
    let totals = trace.totals();
    let json = json!({
        "schema": 1,
        "image": header.image.name,
        "technique": header.technique,
        "engine": header.engine,
        "transport": header.transport,
        "began_unix_ns": header.began,
        "whole": trace.damage().is_none(),
        "exits_in_file": totals.exits,
        "exits_lost": totals.lost,
        "exits": summary.all().count,
        "span_ns": summary.span_ns(),
        "worked_ns": summary.all().ns,
        "waited_ns": summary.waited_ns(),
        "by": summary,
    });
    Ok(format!("{}\n", serde_json::to_string_pretty(&json)?))
}

/// Says what is not in the file.
fn conclude<R: Read>(name: &str, trace: &Reader<R>) -> u8 {
    let totals = trace.totals();
    if totals.lost != 0 {
        notice(format_args!("{} exits are not in {name}, which was written too slowly", totals.lost));
    }
    match trace.damage() {
        None => 0,
        Some(damage) => {
            notice(format_args!("{name} is not whole: after {} exits, {damage}", totals.exits));
            status::HOST_ERROR
        }
    }
}
