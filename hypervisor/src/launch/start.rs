//! From a configuration to a running domain, and the report when it has ended.
//!
//! Start-up does what the first instruction needs and nothing else, and times each step.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use super::available;
use super::engines::limits_of;
use super::stage::{Stage, StageError, Wanted, last_resort};
use super::vcpus::{Seats, Told};
use super::{Config, HostMemory, LastState, OnPeek, Report, select};
use crate::autopsy;
use crate::build;
use crate::build::mapping::AddressLimits;
use crate::build::{BuildError, DomainConfig};
use crate::engine::{EngineInfo, NoCpu};
use crate::gdb::{self, Answering, Debugger};
use crate::host::limit::Advice;
use crate::host::zeroed::{NoMemory, check_own_room};
use crate::image::error::ImageError;
use crate::image::symbols::{locate, symbolize};
use crate::image::{GuestKind, Image};
use crate::machine::console::ConsoleSink;
use crate::machine::end::DomainEnd;
use crate::machine::memory::{CreateError, PAGE_SIZE};
use crate::machine::time::Clock;
use crate::monitor::Control;
use crate::monitor::control::{Look, Orders, Postponed, Show};
use crate::monitor::observe::Unobserved;
use crate::pv::domain::{CONSOLE_PORT, STORE_PORT};
use crate::pv::hypercall::FEATURES;
use crate::technique::{MakeError, Parts, Technique};
use crate::trace;
use crate::trace::record::Recorder;
use crate::virtio;

/// A domain could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The image is not one that can be started.
    #[error("{image}: {error}")]
    Image {
        /// Which image.
        image: String,
        /// What is wrong with it.
        error: ImageError,
    },
    /// There is no memory for it.
    #[error(transparent)]
    Memory(#[from] CreateError),
    /// No engine can run it.
    #[error(transparent)]
    Engine(#[from] select::SelectError),
    /// The engine has no virtual CPU for it: a bug of this program.
    #[error("{0}; this is a bug in Paravane, please report it")]
    Cpu(#[from] NoCpu),
    /// It could not be put into memory.
    #[error("{image}: {error}")]
    Build {
        /// Which image.
        image: String,
        /// What is wrong.
        error: BuildError,
    },
    /// The domain could not be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// There is no memory for the hypervisor's own tables.
    #[error(transparent)]
    Tables(#[from] NoMemory),
    /// The host has too little memory for what is written before the guest starts.
    #[error(transparent)]
    TooLittle(#[from] available::TooLittle),
    /// The technique that was asked for is for other kernels.
    #[error(
        "{image}: technique {technique} cannot run a {kind} kernel; use --technique {able}, or leave the option out"
    )]
    Technique {
        /// Which image.
        image: String,
        /// What was asked for.
        technique: &'static str,
        /// What the image is.
        kind: &'static str,
        /// What can run it.
        able: String,
    },
    /// The technique has fewer virtual CPUs.
    #[error(
        "technique {technique} cannot give a guest {vcpus} virtual CPUs (--vcpus): it has {most} at most"
    )]
    Vcpus {
        /// What was asked for, or is taken for the image.
        technique: &'static str,
        /// How many were asked for.
        vcpus: u32,
        /// How many it can have.
        most: u32,
    },
    /// The host lacks what the technique needs.
    #[error("technique {technique} cannot be used here: {why}")]
    Unavailable {
        /// What was asked for.
        technique: &'static str,
        /// What is missing.
        why: String,
    },
    /// A debugger is asked for, and cannot follow such a guest.
    #[error("technique {technique} has no debugger (--gdb): {why}; use --technique trap")]
    Undebuggable {
        /// What was asked for.
        technique: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// There is no thread for its debugger.
    #[error("cannot start a thread for gdb: {0}{advice}", advice = Advice::of_processes(.0))]
    Debugger(std::io::Error),
    /// There is no thread for its trace.
    #[error(transparent)]
    Trace(#[from] trace::record::BeginError),
    /// The host has no event descriptors left.
    #[error("cannot make an eventfd: {0}{advice}", advice = Advice::of_files(.0))]
    Eventfd(std::io::Error),
    /// The host has no room for the thread of a virtual CPU, or for what belongs to it.
    #[error("cannot run a virtual CPU on a thread of its own: {0}{advice}", advice = Advice::of_processes(.0))]
    Thread(std::io::Error),
}

/// How long a guest that neither prints nor waits runs before postponed work is done.
const POSTPONE_NS: u64 = 5_000_000;

/// What an image that demands "writable_page_tables" gets: its stores to L1 tables may trap, and are done for it
/// (public/features.h; every Linux image demands it, and Xen does not announce it to running domains either).
const TRAPPED_STORES: u32 = 1 << paravane_abi::features::XENFEAT_WRITABLE_PAGE_TABLES;

/// Times the steps of start-up.
pub(super) struct Steps {
    last: Instant,
    list: Vec<(&'static str, u64)>,
}

impl From<StageError> for RunError {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Engine(error) => Self::Engine(error),
            StageError::Memory(error) => Self::Memory(error),
            StageError::TooLittle(error) => Self::TooLittle(error),
        }
    }
}

impl Steps {
    pub(super) fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.list.push((name, nanos(now - self.last)));
        self.last = now;
    }
}

fn nanos(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// Notes when the first byte came through: the guest is then under way.
struct FirstByte {
    sink: Box<dyn ConsoleSink>,
    start: Instant,
    at: Arc<OnceLock<u64>>,
    control: Control,
}

impl ConsoleSink for FirstByte {
    fn write(&mut self, bytes: &[u8]) {
        self.sink.write(bytes);
        if !bytes.is_empty() && self.at.set(nanos(self.start.elapsed())).is_ok() {
            self.control.guest_is_under_way();
        }
    }
}

/// Runs a domain to its end.
///
/// # Errors
/// When it cannot be started; whatever happens afterwards is in the [`Report`].
pub fn run(mut config: Config) -> Result<Report, RunError> {
    let start = Instant::now();
    let mut steps = Steps { last: start, list: Vec::with_capacity(8) };
    let name = config.image_name.clone();
    let file = Arc::new(std::mem::take(&mut config.image));
    let image = Image::parse_within(&file, config.mem_bytes)
        .map_err(|error| RunError::Image { image: name.clone(), error })?;
    steps.done("read the image");

    let kind = image.kind().guest();
    let technique = technique(&config, kind)?;
    let frames = config.mem_bytes / PAGE_SIZE;
    let cmdline = cmdline(&config, technique);
    let building = DomainConfig {
        cmdline: &cmdline,
        initrd: config.initrd.as_deref(),
        console_port: CONSOLE_PORT,
        store_port: STORE_PORT,
        features: FEATURES | TRAPPED_STORES,
        limits: AddressLimits::XEN,
    };
    let virt_base = image.virt_base();
    let initrd_len = config.initrd.as_ref().map_or(0, |bytes| bytes.len() as u64);
    let check = |limits| build::check(&DomainConfig { limits, ..building }, &image, initrd_len, frames);
    let refused = |error| RunError::Build { image: name.clone(), error };
    // What no engine could run is refused before any is set up.
    let written = check(AddressLimits::XEN).map_err(refused)?;
    if let Some(engine) = config.engine.named() {
        check((engine.limits)(virt_base)).map_err(refused)?;
    }
    let wanted = Wanted { config: &config, virt_base, written, check: &|limits| check(limits).map(drop) };
    let stage = match wanted.stage(technique, &mut steps) {
        Err(StageError::Engine(error)) => match last_resort(&config, kind, &error) {
            Some(technique) => {
                let stage = wanted.stage(technique, &mut steps)?;
                Stage { why: format!("{error}; {} needs none", technique.name), ..stage }
            }
            None => return Err(error.into()),
        },
        stage => stage?,
    };
    let Stage { technique, layout, memory, mut machine, why } = stage;
    if let Some(why) = technique.undebuggable.filter(|_| config.gdb.is_some()) {
        return Err(RunError::Undebuggable { technique: technique.name, why });
    }
    check_own_room()?;
    let mut seats = Seats::new(&mut *machine, config.vcpus)?;
    steps.done("set up the engine");

    let mut info = machine.info().clone();
    info.detail = format!("{} ({why})", info.detail);
    let building = DomainConfig { limits: limits_of(&info), ..building };
    let built = build::build(&building, &image, &memory, &layout, |n| machine.hypercall_stub(n))
        .map_err(|error| RunError::Build { image: name, error })?;
    steps.done("build the domain");

    let control = config.control;
    let first = Arc::new(OnceLock::new());
    let sink = FirstByte { sink: config.sink, start, at: first.clone(), control: control.clone() };
    let mut domain = (technique.make)(Parts {
        memory,
        layout: layout.clone(),
        image: &image,
        built,
        sink: Box::new(sink),
        input: config.input,
        name: domain_name(&config.image_name),
        machine: &*machine,
        devices: config.devices,
        kick: seats.boot_kick(),
        kicks: seats.other_kicks().collect(),
        marks: config.marks,
    })?;
    steps.done("take over its page tables");
    let clock = domain.clock();
    let about = || trace_header(&file, &config.image_name, technique, &info, clock);
    let mut recorder = match config.trace {
        None => None,
        Some(to) => Some(Recorder::begin(to, about(), 0)?),
    };

    if let Some(tell) = &config.on_stop {
        domain.with_slots(&mut |slots| virtio::watch(slots, tell));
    }
    control.attach([seats.boot_kick()].into_iter().chain(seats.other_kicks()));
    if let Some(on_ready) = config.on_ready {
        on_ready(&info, technique);
    }
    let mut orders = Orders::new(control.clone(), clock);
    let on_peek = config.on_peek.map(|show| with_autopsy(show, file.clone(), config.mem_bytes));
    match on_peek {
        Some(show) if config.vcpus > 1 => control.show_together(show),
        on_peek => orders.on_peek = on_peek,
    }
    config.on_pause.into_iter().for_each(|tell| control.on_pause(tell));
    orders.postponed = config.once_running.map(|work| Postponed { work, by: clock.now() + POSTPONE_NS });
    // The guest's clock is younger than the run.
    orders.stop_at =
        config.deadline.map(|after| clock.now().saturating_add(nanos(after.saturating_sub(start.elapsed()))));
    steps.done("get ready");
    let debugging = match config.gdb {
        None => None,
        Some(debugger) => Some(debug(debugger, &seats, &control, &image)?),
    };
    let running = Instant::now();
    let told = Told { control: &control, clock, debugger: debugging.as_ref().map(Answering::session) };
    let ran = match &mut recorder {
        None => seats.run(domain.runners(), &told, &mut orders, &mut Unobserved),
        Some(recorder) => seats.run(domain.runners(), &told, &mut orders, recorder),
    };
    let run_ns = nanos(running.elapsed());
    let end = domain.end();
    if let Some(debugging) = debugging {
        debugging.finish(&end);
    }
    ran.map_err(RunError::Thread)?;
    let autopsy = is_bad(&end).then(|| {
        let testimonies = domain.testimonies();
        autopsy::of(image.elf(), testimonies, &mut |vcpu, va| domain.peek(vcpu, va))
    });
    let mut count = || HostMemory::count(domain.runners().boot.memory(), &layout, seats.boot_cpu());
    let memory = if config.count_memory { count() } else { None };
    let regs = domain.last();
    let mut kernel_statistics = machine.kernel_statistics();
    kernel_statistics.extend(seats.kernel_statistics());
    let mut devices = Vec::new();
    domain.with_slots(&mut |slots| devices = virtio::report(slots));
    Ok(Report {
        last: is_bad(&end).then(|| LastState { regs, place: locate(image.elf(), regs.rip) }),
        autopsy,
        memory,
        devices,
        end: name_the_place(end, regs.rip, image.elf()),
        ledger: domain.into_ledger(),
        startup: steps.list,
        kernel_statistics,
        engine: info,
        run_ns,
        first_output_ns: first.get().copied(),
        trace: recorder.map(Recorder::finish),
    })
}

/// Starts the thread that answers the debugger.
fn debug(
    debugger: Debugger,
    seats: &Seats,
    control: &Control,
    image: &Image<'_>,
) -> Result<Answering, RunError> {
    let kicks = [seats.boot_kick()].into_iter().chain(seats.other_kicks());
    let session = gdb::Session::new(kicks).map_err(RunError::Eventfd)?;
    debugger.begin(session, control.clone(), image.elf().into()).map_err(RunError::Debugger)
}

/// Shows what is seen of a guest with the names of the places in it. The image's file, in which they are, is unpacked
/// again: it is small, and hardly anybody looks.
fn with_autopsy(mut show: OnPeek, file: Arc<Cow<'static, [u8]>>, largest: u64) -> Show {
    Box::new(move |Look { ledger, ns, witnesses }| {
        let image = Image::parse_within(&file, largest);
        let elf = image.as_ref().map_or(&[][..], |image| image.elf());
        show(ledger, ns, &autopsy::told(elf, witnesses));
    })
}

/// What a trace says of the run that it is of.
fn trace_header(
    image: &[u8],
    image_name: &str,
    technique: &Technique,
    info: &EngineInfo,
    clock: Clock,
) -> trace::format::Header {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, nanos);
    trace::format::Header {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        image: trace::format::ImageFacts::of(image_name, image),
        technique: technique.name.to_owned(),
        engine: info.name.to_owned(),
        transport: info.transport.to_owned(),
        began: since_1970.saturating_sub(clock.now()),
        causes: trace::format::CauseName::all(),
    }
}

/// The technique that runs the image.
fn technique(config: &Config, kind: GuestKind) -> Result<&'static Technique, RunError> {
    let found = match config.technique {
        None => Technique::of(kind).next(),
        Some(technique) => Some(technique).filter(|technique| technique.runs == kind),
    };
    let Some(technique) = found else {
        let able: Vec<_> = Technique::of(kind).map(|technique| technique.name).collect();
        return Err(RunError::Technique {
            image: config.image_name.clone(),
            technique: config.technique.map_or("", |technique| technique.name),
            kind: kind.name(),
            able: able.join(" or "),
        });
    };
    if config.vcpus > technique.max_vcpus {
        let (technique, most) = (technique.name, technique.max_vcpus);
        return Err(RunError::Vcpus { technique, vcpus: config.vcpus, most });
    }
    match (technique.available)() {
        Ok(()) => Ok(technique),
        Err(why) => Err(RunError::Unavailable { technique: technique.name, why }),
    }
}

/// The kernel's command line: what was given, and where the kernel finds its devices if it has to be told.
fn cmdline<'a>(config: &'a Config, technique: &Technique) -> Cow<'a, str> {
    match (technique.device_parameters)(config.devices.len()) {
        Some(devices) => Cow::Owned(format!("{} {devices}", config.cmdline).trim_start().to_owned()),
        None => Cow::Borrowed(&config.cmdline),
    }
}

/// What the domain is called in its xenstore: its image's name, without the way there.
fn domain_name(image: &str) -> String {
    let file = std::path::Path::new(image).file_name();
    file.map_or_else(|| image.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Whether people ask where the guest was: it did not end of its own will.
fn is_bad(end: &DomainEnd) -> bool {
    match end {
        DomainEnd::PowerOff | DomainEnd::Reboot | DomainEnd::Suspend => false,
        DomainEnd::GuestCrash | DomainEnd::Watchdog | DomainEnd::Killed(_) | DomainEnd::Interrupted => true,
    }
}

/// Adds the symbol at `rip` to what a killed guest leaves behind.
fn name_the_place(end: DomainEnd, rip: u64, elf: &[u8]) -> DomainEnd {
    match (end, symbolize(elf, rip)) {
        (DomainEnd::Killed(why), Some(symbol)) => DomainEnd::Killed(format!("{why} ({symbol})")),
        (end, _) => end,
    }
}
