//! `paravane run`: a guest, its console on ours.
//!
//! A user waits for the guest's first byte. Everything that can be done later is done after it: starting threads,
//! formatting, reading files that were not asked for.

use std::borrow::Cow;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;

use super::device::{DeviceArgs, Opened};
use super::diagnosis::{self, Verbosity};
use super::ending::{self, Asker};
use super::engine_options::{EngineArg, TransportArg, technique_names};
use super::events::{Announced, Event, Events, EventsTo};
use super::gdb::{Gdb, how_to_connect};
use super::input::{Destination, Keyboard};
use super::lost_device::LostDevice;
use super::output::{Output, OutputState};
use super::paths::Paths;
use super::stats::{self, Origin, Statistics};
use super::stats_file::StatisticsFile;
use super::status::{self, Interruption};
use super::terminal::{self, RawMode};
use super::{input_file, oom, signals, size, trace_file};
use crate::autopsy::text::Style;
use crate::backend::console::stdio::Outside;
use crate::gdb::Address;
use crate::host::busy_poll;
use crate::host::limit::Advice;
use crate::host::notice;
use crate::host::notice::notice;
use crate::host::threads;
use crate::image::GuestKind;
use crate::launch;
use crate::launch::{Config, Report};
use crate::machine::console::ConsoleInput;
use crate::monitor::Control;
use crate::snapshot::Snapshot;
use crate::technique::Technique;
use crate::text::{printable, units};
use crate::virtio;

const EXAMPLES: &str = "\
Examples:
  paravane run                           the reference guest's shell, paravirtual
  paravane run --bare                    the same kernel on a bare PC, trapped and emulated
  paravane run --cmdline bench=null-call --stats
  paravane run my-kernel.elf --mem 256M --initrd root.img --timeout 10s
  paravane run --disk disk.img --disk base.qcow2,readonly --rng
  paravane run --net user,tcp=8080:80 --cmdline serve       then: curl http://localhost:8080/
  paravane run --net tap=tap0 --vsock cid=3,socket=/tmp/guest.sock
  paravane run --trace boot.trace --timeout 10s                then: paravane trace boot.trace
  paravane run --console pty --cmdline console=virtio
  paravane run my-kernel.elf --gdb                       then: gdb -ex 'target remote :1234'
  paravane run --snapshot-to warm.snap                       then Ctrl-A w, and: paravane run --restore warm.snap
  paravane run --config server.toml --mem 1G             options from a file; what is typed here wins

On a terminal, Ctrl-A x leaves and Ctrl-A h shows the other keys; everything else goes to the guest.
In a pipe every byte goes to the guest, which goes on when its input ends.
";

/// The heading over options that are the host's business and not the guest's.
const HOST: &str = "Running and measuring";

/// Arguments of `paravane run`.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true, after_long_help = format!("{EXAMPLES}\n{}", status::HELP))]
pub(super) struct RunArgs {
    /// The kernel: an ELF file with Xen's notes (paravirtual) or Paravane's (bare PC) [default: the built-in
    /// reference guest]
    image: Option<PathBuf>,
    /// Run the built-in guest's bare-PC build: short for --technique trap without an image
    #[arg(long, conflicts_with_all = ["image", "technique"])]
    bare: bool,
    /// Guest memory: a number and K, M, G or T (powers of 1024); a bare number is MiB
    #[arg(long, short, value_name = "SIZE", default_value = "64M", value_parser = size::memory)]
    mem: u64,
    /// Virtual CPUs of the guest
    #[arg(long, visible_alias = "smp", value_name = "N", default_value_t = 1, hide_default_value = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
    /// The kernel's command line
    #[arg(long, short, value_name = "TEXT", default_value = "", hide_default_value = true)]
    cmdline: String,
    /// A file to hand to the kernel as its initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    #[command(flatten)]
    devices: DeviceArgs,
    /// How the kernel is virtualized: pv (it asks, by hypercalls) or trap (it is trapped and emulated)
    /// [default: as the image wants]
    #[arg(long, value_name = "NAME", value_parser = technique_names(), help_heading = HOST)]
    technique: Option<String>,
    /// What runs the guest's code
    #[arg(long, value_enum, default_value_t, help_heading = HOST)]
    engine: EngineArg,
    /// How hypercalls enter the host on KVM
    #[arg(long, value_enum, default_value_t, help_heading = HOST)]
    transport: TransportArg,
    /// Have every system call of a guest's program exit on KVM, to see what fast paths are worth
    #[arg(long, hide = true)]
    no_fast_paths: bool,
    /// Microseconds for which a vCPU or a device without work polls before it sleeps; 0 turns polling off
    /// [default: 200, and 0 where there is one CPU]
    #[arg(long, value_name = "US", value_parser = size::microseconds, help_heading = HOST)]
    busy_poll: Option<u32>,
    /// End the run after this long, whatever it waits for: a number and ms, s, m or h; a bare number is seconds
    #[arg(long, value_name = "TIME", value_parser = size::duration, help_heading = HOST)]
    timeout: Option<Duration>,
    /// Print start-up times, exits by cause, batch sizes, what became of devices, and the registers of a guest that
    /// came to a bad end, to standard error at the end
    #[arg(long, help_heading = HOST)]
    stats: bool,
    /// Write the same as JSON to a file
    #[arg(long, value_name = "FILE", help_heading = HOST)]
    stats_json: Option<PathBuf>,
    /// Write every exit to a file, for `paravane trace`
    #[arg(long, value_name = "FILE", help_heading = HOST)]
    trace: Option<PathBuf>,
    /// Have the guest wait for gdb before its first instruction: at HOST:PORT, or a socket's path with a / in it
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = Address::DEFAULT)]
    #[arg(help_heading = HOST)]
    gdb: Option<Address>,
    /// Tell a supervisor what becomes of the run: a JSON object a line, to a file or to an open descriptor's number
    #[arg(long, value_name = "FILE|FD", help_heading = HOST)]
    events: Option<EventsTo>,
    /// Save the guest to this file on Ctrl-A w or SIGUSR2, each time anew; it goes on afterwards
    #[arg(long, value_name = "FILE", conflicts_with = "gdb", help_heading = HOST)]
    snapshot_to: Option<PathBuf>,
    /// Go on with a guest that --snapshot-to saved, on whichever engine
    #[arg(long, value_name = "FILE", help_heading = HOST)]
    #[arg(conflicts_with_all = ["image", "bare", "mem", "vcpus", "cmdline", "initrd", "technique"])]
    restore: Option<PathBuf>,
    /// Say what the host does and why: more with -vv, everything with -vvv
    #[arg(short, action = clap::ArgAction::Count, help_heading = HOST)]
    verbose: u8,
    /// The same, by name
    #[arg(long, value_enum, value_name = "LEVEL", conflicts_with = "verbose", help_heading = HOST)]
    log: Option<Verbosity>,
    /// Read options from a TOML file: `mem = "256M"` is --mem 256M, and `image` the kernel. The command line wins
    #[arg(long, value_name = "FILE", help_heading = HOST)]
    config: Option<PathBuf>,
}

impl RunArgs {
    /// The file of further options.
    pub(super) fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Whether it is said which kernel is to run.
    pub(super) fn names_a_kernel(&self) -> bool {
        self.image.is_some() || self.bare || self.restore.is_some()
    }
}

/// Runs a guest to its end; the exit status of the process.
pub(super) fn run(args: &RunArgs, origin: &Origin) -> anyhow::Result<u8> {
    if let Some(verbosity) = args.log.or(Verbosity::of_flags(args.verbose)) {
        diagnosis::begin(verbosity);
    }
    let control = Control::default();
    let timeout = args.timeout.map(|timeout| origin.what_is_left_of(timeout));
    signals::install();
    ending::begin(control.clone(), timeout)?;
    terminal::restore_on_panic();
    launch::allow_fast_paths(!args.no_fast_paths);
    args.busy_poll.into_iter().for_each(busy_poll::set_longest_us);
    let snapshot = args.restore.as_deref().map(Snapshot::open).transpose()?;
    let (image, image_name) = load_image(args)?;
    let initrd = load_initrd(args)?;
    check_paths(args)?;
    let events = args.events.as_ref().map(|to| Events::open(to, origin.main())).transpose()?;
    let tell = |event: &Event<'_>| events.iter().for_each(|events| events.tell(event));
    tell(&Event::Starting { pid: std::process::id(), image: &image_name, memory: args.mem });
    let begun = Begun { control, image, image_name, initrd, snapshot, events: events.clone() };
    let ended = begun.run(args, origin);
    // Whatever it came to: who was told of a beginning is told of the end.
    let (status, reason) = match &ended {
        Ok(ended) => (ended.status, ended.reason.clone()),
        Err(error) => (super::status_of(error), super::message(error)),
    };
    tell(&Event::Ended { status, reason });
    ended.map(|ended| ended.status)
}

/// How a run ended.
struct Ended {
    /// The exit status of the process.
    status: u8,
    /// Why, in words.
    reason: String,
}

/// A run of which a supervisor has been told.
struct Begun {
    control: Control,
    image: Cow<'static, [u8]>,
    image_name: String,
    initrd: Option<Vec<u8>>,
    snapshot: Option<Snapshot>,
    events: Option<Events>,
}

impl Begun {
    /// Makes the guest's devices, and runs it to its end.
    fn run(self, args: &RunArgs, origin: &Origin) -> anyhow::Result<Ended> {
        let Self { control, image, image_name, initrd, snapshot, events } = self;
        let lost = LostDevice::default();
        let report_loss = lost.reporter(control.clone(), || ending::ask(Asker::LostDevice));
        let Opened { devices, stdio } = args.devices.open(&report_loss)?;
        let json = args.stats_json.as_deref().map(StatisticsFile::open).transpose()?;
        let trace =
            args.trace.as_deref().map(|path| trace_file::open(path, args.image.as_deref())).transpose()?;

        let gdb = Gdb::default();
        let debugger = gdb.listen(args.gdb.as_ref())?;
        let waits = debugger.as_ref().map(|debugger| how_to_connect(args.image.as_deref(), debugger));

        let left = Arc::new(AtomicBool::new(false));
        let output = OutputState::default();
        let raw = RawMode::enter();
        if args.snapshot_to.is_some() {
            signals::on_save(control.clone());
        }
        let input = ConsoleInput::default();
        let mut to = Destination::Console(input.clone());
        if let Some(Outside { keys, resized }) = stdio {
            to = Destination::Device(keys);
            resized.into_iter().for_each(signals::on_resize);
        }
        let keyboard = Keyboard::new(to, control.clone(), Arc::clone(&left), raw.is_some())
            .saving(args.snapshot_to.is_some());
        // Without the escape key nobody waits for what is typed before the guest has printed.
        let early = raw.is_some().then(|| keyboard.clone());
        let sink =
            Output::stdout(output.clone(), control.clone(), early).context("standard output is closed")?;
        let config = Config {
            image,
            image_name: image_name.clone(),
            mem_bytes: args.mem,
            vcpus: args.vcpus,
            cmdline: args.cmdline.clone(),
            initrd,
            devices,
            // `--bare` names no technique: where no engine works, another one will do.
            technique: if args.bare { None } else { technique(args) },
            engine: args.engine.into(),
            transport: args.transport.into(),
            sink: Box::new(Announced::new(sink, events.clone())),
            input,
            on_ready: Some(on_ready(events.clone(), waits)),
            once_running: Some(Box::new(move || keyboard.start())),
            control,
            deadline: args.timeout.map(|timeout| origin.what_is_left_of(timeout)),
            on_peek: Some(Box::new(|ledger, ns, doing| {
                notice::text(&format!("{}{}", stats::so_far(ledger, ns), doing.text(style())));
            })),
            count_memory: args.stats || args.stats_json.is_some(),
            marks: args.stats || args.stats_json.is_some() || args.trace.is_some(),
            on_stop: Some(on_stop(events.clone())),
            on_pause: events.clone().map(on_pause),
            gdb: debugger,
            trace,
            snapshot_to: args.snapshot_to.clone().map(|path| snapshot_to(path, events.clone())),
            restore: snapshot,
        };
        if usize::try_from(args.vcpus).is_ok_and(|vcpus| vcpus > threads::cpus()) {
            notice(format_args!("{} virtual CPUs take turns on {} CPUs", args.vcpus, threads::cpus()));
        }
        oom::stand_before_others();
        let result = launch::run(config);
        drop(raw);
        let report = result?;

        let lost = lost.why();
        let by = Interruption {
            signal: ending::signal(),
            left: left.load(Ordering::Acquire),
            killed: gdb.killed(),
            lost: lost.is_some(),
        };
        let statistics = Statistics::new(&image_name, (&report, by), origin, output.first_byte());
        if args.stats {
            notice::text(&statistics.to_string());
        }
        if let Some(file) = json {
            file.write(&statistics)?;
        }
        if let (Some(path), Some(outcome)) = (&args.trace, &report.trace) {
            trace_file::conclude(path, outcome)?;
        }
        match lost {
            Some(why) if status::of(&report.end, by) == status::HOST_ERROR => Err(anyhow::Error::msg(why)),
            _ => Ok(conclude(&report, by, &output)),
        }
    }
}

/// What is done once the guest can be told to end, before its first instruction.
fn on_ready(events: Option<Events>, waits: Option<String>) -> launch::OnReady {
    Box::new(move |engine, technique| {
        ending::guest_runs();
        waits.iter().for_each(notice);
        if let Some(events) = events {
            events.tell(&Event::Started { engine: engine.name, technique: technique.name });
        }
    })
}

/// Tells the user of devices that stop, and a supervisor.
fn on_stop(events: Option<Events>) -> virtio::Tell {
    Arc::new(move |stopped| {
        notice(stopped);
        if let Some(events) = &events {
            events.tell(&Event::Device { device: stopped.device, problem: stopped.offence.to_string() });
        }
    })
}

/// Saves the guest, and says so.
fn snapshot_to(path: PathBuf, events: Option<Events>) -> launch::SnapshotTo {
    let name = printable::path(&path).to_string();
    let tell = move |outcome: Result<launch::Saved, String>| {
        let problem = match &outcome {
            Ok(launch::Saved { summary, took }) => {
                let memory = units::bytes(summary.memory);
                notice(format_args!("saved to {name}: {memory} of memory, in {} ms", took.as_millis()));
                None
            }
            Err(why) => {
                notice(format_args!("the guest was not saved: {why}"));
                Some(why.clone())
            }
        };
        events
            .iter()
            .for_each(|events| events.tell(&Event::Saved { file: &name, problem: problem.as_deref() }));
    };
    launch::SnapshotTo { path, tell: Box::new(tell) }
}

/// Tells a supervisor that the guest stands still or goes on.
fn on_pause(events: Events) -> Box<dyn FnMut(bool) + Send> {
    Box::new(move |stands| events.tell(if stands { &Event::Paused } else { &Event::Resumed }))
}

fn load_initrd(args: &RunArgs) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(path) = &args.initrd else { return Ok(None) };
    let module = input_file::module(path, args.mem);
    Ok(Some(module.with_context(|| format!("cannot read initrd {}", printable::path(path)))?))
}

/// A console's file is emptied when it is opened: not if it is one that the guest needs.
fn check_paths(args: &RunArgs) -> anyhow::Result<()> {
    let mut paths = Paths::default();
    args.image.iter().for_each(|path| paths.read("IMAGE", path));
    args.initrd.iter().for_each(|path| paths.read("--initrd", path));
    args.stats_json.iter().for_each(|path| paths.write("--stats-json", path));
    args.trace.iter().for_each(|path| paths.write("--trace", path));
    args.config.iter().for_each(|path| paths.read("--config", path));
    args.restore.iter().for_each(|path| paths.read("--restore", path));
    // A guest may be saved to the file that it goes on from: that is replaced, and not written.
    let to = args.snapshot_to.iter().filter(|path| args.restore.as_ref() != Some(path));
    to.for_each(|path| paths.write("--snapshot-to", path));
    if let Some(EventsTo::File(path)) = &args.events {
        paths.write("--events", path);
    }
    args.devices.add_paths(&mut paths);
    Ok(paths.check()?)
}

/// The technique that was named.
fn technique(args: &RunArgs) -> Option<&'static Technique> {
    let name = if args.bare { Some("trap") } else { args.technique.as_deref() };
    name.and_then(Technique::named)
}

fn load_image(args: &RunArgs) -> anyhow::Result<(Cow<'static, [u8]>, String)> {
    if let Some(path) = &args.restore {
        return Ok((Cow::Borrowed(&[]), printable::path(path).to_string()));
    }
    match &args.image {
        None => {
            let kind = technique(args).map_or(GuestKind::Pv, |technique| technique.runs);
            let name = match kind {
                GuestKind::Pv => "built-in guest",
                GuestKind::Bare => "built-in bare guest",
            };
            Ok((Cow::Borrowed(kind.builtin()), name.to_owned()))
        }
        Some(path) => {
            let bytes = input_file::image(path, args.mem)
                .with_context(|| format!("cannot read image {}", printable::path(path)))?;
            Ok((Cow::Owned(bytes), printable::path(path).to_string()))
        }
    }
}

/// Says on standard error what a user should know of the end, and makes it an exit status.
fn conclude(report: &Report, by: Interruption, output: &OutputState) -> Ended {
    for device in report.devices.iter().filter(|device| device.untold > 0) {
        notice(format_args!("virtio {} stopped {} times in all", device.device, device.stops));
    }
    let code = status::of(&report.end, by);
    let what = status::describe(&report.end, by);
    if code != 0 && !quiet(code) {
        let unread = if output.is_unread() { "; nobody reads standard output" } else { "" };
        notice(format_args!("{}{unread}", printable::lines(&what)));
        // Whoever sent a signal had a reason.
        if let Some(autopsy) = report.autopsy.as_ref().filter(|_| by.signal.is_none()) {
            notice::text(&autopsy.text(style()));
        }
    }
    // A reader that went away did so of its own will; SIGPIPE has set the status.
    match output.failure().filter(|error| error.kind() != io::ErrorKind::BrokenPipe) {
        None => Ended { status: code, reason: what },
        Some(error) => {
            let lost = format!("console output was lost: {error}{}", Advice::of_writes(&error));
            notice(&lost);
            if by.signal.is_some() {
                return Ended { status: code, reason: what };
            }
            Ended { status: status::HOST_ERROR, reason: lost }
        }
    }
}

/// How parts of what is said on standard error are set off.
fn style() -> Style {
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if colours { Style::TERMINAL } else { Style::PLAIN }
}

/// Whether an end needs no words, because whoever caused it knows.
fn quiet(code: u8) -> bool {
    code > status::SIGNAL_BASE && !io::stderr().is_terminal()
        || code == status::SIGNAL_BASE + libc::SIGPIPE as u8
}
