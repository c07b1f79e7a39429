//! From a domain that is ready to its end, and the report: the same for a domain that was built and one that was
//! restored.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use super::start::{RunError, Steps, nanos};
use super::vcpus::{Seats, Told};
use super::{Config, HostMemory, LastState, OnPeek, OnReady, Once, Report, SnapshotTo, save};
use crate::autopsy;
use crate::engine::{EngineInfo, Machine};
use crate::gdb::{self, Answering, Debugger};
use crate::image::symbols::{locate, symbolize};
use crate::machine::console::{ConsoleInput, ConsoleSink};
use crate::machine::end::DomainEnd;
use crate::machine::layout::HypervisorLayout;
use crate::machine::time::Clock;
use crate::monitor::Control;
use crate::monitor::control::{Look, OnPause, Orders, Postponed, Show};
use crate::monitor::observe::Unobserved;
use crate::technique::{Domain, Technique};
use crate::trace;
use crate::trace::record::Recorder;
use crate::virtio::{self, Device, Tell};

/// How long a guest that neither prints nor waits runs before postponed work is done.
const POSTPONE_NS: u64 = 5_000_000;

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

/// What a domain is made with.
pub(super) struct Given {
    pub sink: Box<dyn ConsoleSink>,
    pub input: ConsoleInput,
    pub devices: Vec<Box<dyn Device>>,
    pub marks: bool,
}

/// A domain about to run its first instruction, or its next one.
pub(super) struct Ready {
    pub technique: &'static Technique,
    pub info: EngineInfo,
    pub layout: HypervisorLayout,
    pub machine: Box<dyn Machine>,
    pub seats: Seats,
    pub domain: Box<dyn Domain>,
}

/// What is known of a guest besides its state.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub image_name: String,
    pub frames: u64,
    pub vcpus: u32,
    pub virt_base: u64,
    pub mapped_bytes: u64,
}

/// The kernel's file, for people and for debuggers.
pub(super) struct Kernel<'a> {
    /// As it was given; empty if nobody knows it any more.
    pub file: &'a [u8],
    /// The ELF file in it, which is asked for when it is needed.
    pub elf: &'a dyn Fn() -> Cow<'a, [u8]>,
    /// The same while the guest runs.
    pub elf_later: Box<dyn Fn() -> Vec<u8> + Send>,
}

/// What of a configuration concerns the run.
pub(super) struct Going {
    control: Control,
    on_ready: Option<OnReady>,
    once_running: Option<Once>,
    deadline: Option<Duration>,
    on_peek: Option<OnPeek>,
    count_memory: bool,
    on_stop: Option<Tell>,
    on_pause: Option<OnPause>,
    trace: Option<trace::record::Destination>,
    gdb: Option<Debugger>,
    snapshot_to: Option<SnapshotTo>,
    steps: Steps,
    first: Arc<OnceLock<u64>>,
}

impl Going {
    /// What the domain is made with, and what concerns its run.
    pub fn split(config: Config, steps: Steps) -> (Given, Self) {
        let first = Arc::new(OnceLock::new());
        let control = config.control;
        let sink =
            FirstByte { sink: config.sink, start: steps.start, at: first.clone(), control: control.clone() };
        let given =
            Given { sink: Box::new(sink), input: config.input, devices: config.devices, marks: config.marks };
        let going = Self {
            control,
            on_ready: config.on_ready,
            once_running: config.once_running,
            deadline: config.deadline,
            on_peek: config.on_peek,
            count_memory: config.count_memory,
            on_stop: config.on_stop,
            on_pause: config.on_pause,
            trace: config.trace,
            gdb: config.gdb,
            snapshot_to: config.snapshot_to,
            steps,
            first,
        };
        (given, going)
    }

    /// Runs it to its end.
    pub fn run(self, ready: Ready, guest: &Guest, kernel: Kernel<'_>) -> Result<Report, RunError> {
        let Kernel { file, elf, elf_later } = kernel;
        let Ready { technique, info, layout, machine, mut seats, mut domain } = ready;
        let Self { control, mut steps, first, .. } = self;
        steps.done("take over its page tables");
        let start = steps.start;
        let clock = domain.clock();
        let about = || trace_header(file, &guest.image_name, technique, &info, clock);
        let mut recorder = match self.trace {
            None => None,
            Some(to) => Some(Recorder::begin(to, about(), 0)?),
        };
        if let Some(to) = self.snapshot_to {
            let facts = save::Facts::of(guest, technique, &info);
            save::on_command(&control, &*domain, (to, facts), layout.engine.clone(), &elf())?;
        }

        if let Some(tell) = &self.on_stop {
            domain.with_slots(&mut |slots| virtio::watch(slots, tell));
        }
        control.attach([seats.boot_kick()].into_iter().chain(seats.other_kicks()));
        if let Some(on_ready) = self.on_ready {
            on_ready(&info, technique);
        }
        let mut orders = Orders::new(control.clone(), clock);
        let on_peek = self.on_peek.map(|show| with_autopsy(show, elf_later));
        match on_peek {
            Some(show) if guest.vcpus > 1 => control.show_together(show),
            on_peek => orders.on_peek = on_peek,
        }
        self.on_pause.into_iter().for_each(|tell| control.on_pause(tell));
        orders.postponed = self.once_running.map(|work| Postponed { work, by: clock.now() + POSTPONE_NS });
        // The guest's clock is not the run's.
        let left = |after: Duration| nanos(after.saturating_sub(start.elapsed()));
        orders.stop_at = self.deadline.map(|after| clock.now().saturating_add(left(after)));
        steps.done("get ready");
        let debugging = match self.gdb {
            None => None,
            Some(debugger) => Some(debug(debugger, &seats, &control, &elf())?),
        };
        let running = Instant::now();
        let told = Told { control: &control, clock, debugger: debugging.as_ref().map(Answering::session) };
        let ran = match &mut recorder {
            None => seats.run(domain.runners(), &told, &mut orders, &mut Unobserved),
            Some(recorder) => seats.run(domain.runners(), &told, &mut orders, recorder),
        };
        let run_ns = nanos(running.elapsed());
        control.has_ended();
        let end = domain.end();
        tracing::info!(ms = run_ns / 1_000_000, "the guest has run: {end:?}");
        if let Some(debugging) = debugging {
            debugging.finish(&end);
        }
        ran.map_err(RunError::Thread)?;
        let elf = if is_bad(&end) { elf() } else { Cow::default() };
        let autopsy = is_bad(&end).then(|| {
            let testimonies = domain.testimonies();
            autopsy::of(&elf, testimonies, &mut |vcpu, va| domain.peek(vcpu, va))
        });
        let mut count = || HostMemory::count(domain.runners().boot.memory(), &layout, seats.boot_cpu());
        let memory = if self.count_memory { count() } else { None };
        let regs = domain.last();
        let mut kernel_statistics = machine.kernel_statistics();
        kernel_statistics.extend(seats.kernel_statistics());
        let mut devices = Vec::new();
        domain.with_slots(&mut |slots| devices = virtio::report(slots));
        Ok(Report {
            last: is_bad(&end).then(|| LastState { regs, place: locate(&elf, regs.rip) }),
            autopsy,
            memory,
            devices,
            end: name_the_place(end, regs.rip, &elf),
            ledger: domain.into_ledger(),
            startup: steps.list,
            kernel_statistics,
            engine: info,
            run_ns,
            first_output_ns: first.get().copied(),
            trace: recorder.map(Recorder::finish),
        })
    }
}

/// Starts the thread that answers the debugger.
fn debug(debugger: Debugger, seats: &Seats, control: &Control, elf: &[u8]) -> Result<Answering, RunError> {
    let kicks = [seats.boot_kick()].into_iter().chain(seats.other_kicks());
    let session = gdb::Session::new(kicks).map_err(RunError::Eventfd)?;
    debugger.begin(session, control.clone(), elf.into()).map_err(RunError::Debugger)
}

/// Shows what is seen of a guest with the names of the places in it.
fn with_autopsy(mut show: OnPeek, elf: Box<dyn Fn() -> Vec<u8> + Send>) -> Show {
    Box::new(move |Look { ledger, ns, witnesses }| show(ledger, ns, &autopsy::told(&elf(), witnesses)))
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
