//! From a configuration to a running domain, and the report when it has ended.
//!
//! Start-up does what the first instruction needs and nothing else, and times each step.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use paravane_abi::shared_info::VcpuInfo;

use super::available;
use super::{Config, EngineChoice, HostMemory, LastState, Report, select};
use crate::bare::platform::virtio_mmio::VirtioMmio;
use crate::build;
use crate::build::mapping::AddressLimits;
use crate::build::{BuildError, BuiltDomain, DomainConfig, DomainKind};
use crate::engine::process::Lowest;
use crate::engine::{Machine, NoCpu};
use crate::host::limit::Advice;
use crate::host::zeroed::{NoMemory, check_own_room};
use crate::image::error::ImageError;
use crate::image::symbols::{locate, symbolize};
use crate::image::{Image, ImageKind};
use crate::machine::console::ConsoleSink;
use crate::machine::end::DomainEnd;
use crate::machine::kick::Kick;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{BadMachineAddress, CreateError, MachineMemory, Maddr, PAGE_SIZE};
use crate::machine::time::Clock;
use crate::mmu::direct::DirectPaging;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::monitor::vcpu_loop;
use crate::monitor::vcpu_loop::{Guest, Outside, PutOff};
use crate::monitor::waker::Waker;
use crate::pv::devices::PvDevices;
use crate::pv::domain::{CONSOLE_PORT, DOMID, Facts, PvConsole, PvDomain, PvParts, PvStore, STORE_PORT};
use crate::pv::hypercall::FEATURES;
use crate::pv::store::About;
use crate::technique::pv::PvGuest;
use crate::virtio;
use crate::virtio::Device;
use crate::x86::registers::Regs;

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
    /// The engine has no virtual CPU for it: a bug of ours.
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
    /// The builder's page tables were refused: a bug of ours.
    #[error("the initial page tables were refused with {0}; this is a bug in Paravane, please report it")]
    InitialTables(paravane_abi::errno::Errno),
    /// The builder made no pages for the rings of console and xenstore, or not as ordinary memory: a bug of ours.
    #[error(
        "the domain lacks the page of a ring (console or xenstore); this is a bug in Paravane, please report it"
    )]
    NoRing,
    /// The guest's memory cannot be shown to its devices: a bug of ours.
    #[error("{0}; this is a bug in Paravane, please report it")]
    Devices(#[from] crate::machine::device_memory::MemoryError),
    /// There is no memory for the hypervisor's own tables.
    #[error(transparent)]
    Tables(#[from] NoMemory),
    /// The host has too little memory for what is written before the guest starts.
    #[error(transparent)]
    TooLittle(#[from] available::TooLittle),
    /// A bare machine could not be made.
    #[error("cannot make a bare machine: {0}")]
    Bare(#[from] crate::bare::StartError),
    /// The layout does not fit: a bug of ours.
    #[error("{0}; this is a bug in Paravane, please report it")]
    Layout(#[from] BadMachineAddress),
    /// The host has no event descriptors left.
    #[error("cannot make an eventfd: {0}{advice}", advice = Advice::of_files(.0))]
    Eventfd(std::io::Error),
}

/// How long a guest that neither prints nor waits runs before what was put off is done.
const PUT_OFF_NS: u64 = 5_000_000;

/// What an image that demands "writable_page_tables" gets: its stores to L1 tables may trap, and are done for it
/// (public/features.h; every Linux image demands it, and Xen does not announce it to running domains either).
const TRAPPED_STORES: u32 = 1 << paravane_abi::features::XENFEAT_WRITABLE_PAGE_TABLES;

/// Times the steps of start-up.
struct Steps {
    last: Instant,
    list: Vec<(&'static str, u64)>,
}

impl Steps {
    fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.list.push((name, nanos(now - self.last)));
        self.last = now;
    }
}

fn nanos(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// Notes when the first byte came through.
struct FirstByte {
    sink: Box<dyn ConsoleSink>,
    start: Instant,
    at: Arc<OnceLock<u64>>,
}

impl ConsoleSink for FirstByte {
    fn write(&mut self, bytes: &[u8]) {
        self.sink.write(bytes);
        if !bytes.is_empty() {
            self.at.get_or_init(|| nanos(self.start.elapsed()));
        }
    }
}

/// Runs a domain to its end.
///
/// # Errors
/// When it cannot be started; whatever happens afterwards is in the [`Report`].
pub fn run(config: Config) -> Result<Report, RunError> {
    let start = Instant::now();
    let mut steps = Steps { last: start, list: Vec::with_capacity(8) };
    let name = config.image_name.clone();
    let image = Image::parse_within(&config.image, config.mem_bytes)
        .map_err(|error| RunError::Image { image: name.clone(), error })?;
    steps.done("read the image");

    let frames = config.mem_bytes / PAGE_SIZE;
    let shadow = match image.kind() {
        ImageKind::Pv(_) => 0,
        ImageKind::Bare(_) => crate::technique::trap::shadow_frames(frames),
    };
    let layout = HypervisorLayout::new(frames, shadow);
    let cmdline = cmdline(&config, &image);
    let building = DomainConfig {
        cmdline: &cmdline,
        initrd: config.initrd.as_deref(),
        console_port: CONSOLE_PORT,
        store_port: STORE_PORT,
        features: FEATURES | TRAPPED_STORES,
        limits: AddressLimits::XEN,
    };
    let lowest = Lowest::for_guest(image.virt_base());
    let initrd_len = config.initrd.as_ref().map_or(0, |bytes| bytes.len() as u64);
    let check = |limits| build::check(&DomainConfig { limits, ..building }, &image, initrd_len, frames);
    let refused = |error| RunError::Build { image: name.clone(), error };
    // What no engine could run is refused before any is set up.
    let written = check(AddressLimits::XEN).map_err(refused)?;
    available::check(config.mem_bytes, written.fixed, written.growing + tables_of(&layout, image.kind()))?;
    let in_process = check(select::process_limits(lowest)).map(drop);
    if config.engine == EngineChoice::Process {
        in_process.clone().map_err(refused)?;
    }
    let plan = select::plan(config.engine, config.transport, in_process)?;
    let memory = MachineMemory::new(layout.hypervisor_frames(), frames, plan.backing())?;
    steps.done("map memory");
    let (mut machine, why) = plan.engine(&memory, &layout, config.transport, lowest)?;
    check_own_room()?;
    let mut cpu = machine.cpu(0)?;
    steps.done("set up the engine");

    let mut info = machine.info().clone();
    info.detail = format!("{} ({why})", info.detail);
    let building = DomainConfig { limits: AddressLimits::of_engine(&info), ..building };
    let built = build::build(&building, &image, &memory, &layout, |n| machine.hypercall_stub(n))
        .map_err(|error| RunError::Build { image: name, error })?;
    steps.done("build the domain");

    let first = Arc::new(OnceLock::new());
    let sink = Box::new(FirstByte { sink: config.sink, start, at: first.clone() });
    let waker = Arc::new(Waker::new(cpu.kicker()).map_err(RunError::Eventfd)?);
    let world = World {
        memory,
        layout: layout.clone(),
        built,
        sink,
        input: config.input,
        name: domain_name(&config.image_name),
        machine: &*machine,
        devices: config.devices,
        kick: waker.clone(),
        marks: config.marks,
    };
    let mut guest: Box<dyn Guest> = match world.built.kind {
        DomainKind::Pv => Box::new(world.paravirtual()?),
        DomainKind::Bare => Box::new(world.bare()?),
    };
    steps.done("take over its page tables");

    if let Some(tell) = &config.on_stop {
        virtio::watch(&guest.slots(), tell);
    }
    if let Some(on_ready) = config.on_ready {
        on_ready(waker.clone());
    }
    let put_off = config.once_running.map(|once_running| PutOff {
        call: Box::new({
            let waker = waker.clone();
            move || once_running(waker)
        }),
        printed: first.clone(),
        by: guest.clock().now() + PUT_OFF_NS,
    });
    // The guest's clock is younger than the run.
    let deadline = config
        .deadline
        .map(|after| guest.clock().now().saturating_add(nanos(after.saturating_sub(start.elapsed()))));
    let outside = Outside { stop: config.stop, deadline, put_off, peek: config.peek };
    steps.done("get ready");
    let running = Instant::now();
    let end = vcpu_loop::run(&mut *cpu, &mut *guest, &waker, outside);
    let run_ns = nanos(running.elapsed());
    let count = |memory| HostMemory::count(memory, &layout, &*cpu);
    let memory = config.count_memory.then(|| count(guest.context().3)).flatten();
    let mut kernel_statistics = machine.kernel_statistics();
    kernel_statistics.extend(cpu.kernel_statistics());
    Ok(Report {
        last: last_state(&end, *guest.context().0, image.elf()),
        memory,
        devices: virtio::report(&guest.slots()),
        end: name_the_place(end, guest.context().0.rip, image.elf()),
        ledger: guest.into_ledger(),
        startup: steps.list,
        kernel_statistics,
        engine: info,
        run_ns,
        first_output_ns: first.get().copied(),
    })
}

/// Bytes of the hypervisor's own tables that are written before the guest starts.
fn tables_of(layout: &HypervisorLayout, kind: &ImageKind) -> u64 {
    let m2p = layout.m2p.end - layout.m2p.start;
    let frames = match kind {
        // The table itself, those that map it, and the account of the hypervisor's frames.
        ImageKind::Pv(_) => m2p + m2p.div_ceil(512) + layout.hypervisor_frames().div_ceil(512),
        ImageKind::Bare(_) => m2p.div_ceil(512),
    };
    frames * PAGE_SIZE
}

/// The kernel's command line: what was given, and where a bare kernel finds its devices.
fn cmdline<'a>(config: &'a Config, image: &Image<'_>) -> Cow<'a, str> {
    match image.kind() {
        ImageKind::Bare(_) if !config.devices.is_empty() => {
            let devices = VirtioMmio::parameters(config.devices.len());
            Cow::Owned(format!("{} {devices}", config.cmdline).trim_start().to_owned())
        }
        _ => Cow::Borrowed(&config.cmdline),
    }
}

/// What the domain is called in its xenstore: its image's name, without the way there.
fn domain_name(image: &str) -> String {
    let file = std::path::Path::new(image).file_name();
    file.map_or_else(|| image.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Where the guest was, unless it ended of its own will: then nobody asks.
fn last_state(end: &DomainEnd, regs: Regs, elf: &[u8]) -> Option<LastState> {
    match end {
        DomainEnd::PowerOff | DomainEnd::Reboot | DomainEnd::Suspend => None,
        DomainEnd::GuestCrash | DomainEnd::Watchdog | DomainEnd::Killed(_) | DomainEnd::Interrupted => {
            Some(LastState { regs, place: locate(elf, regs.rip) })
        }
    }
}

/// Adds the symbol at `rip` to what a killed guest leaves behind.
fn name_the_place(end: DomainEnd, rip: u64, elf: &[u8]) -> DomainEnd {
    match (end, symbolize(elf, rip)) {
        (DomainEnd::Killed(why), Some(symbol)) => DomainEnd::Killed(format!("{why} ({symbol})")),
        (end, _) => end,
    }
}

/// What both kinds of domain are made from.
pub(crate) struct World<'a> {
    pub memory: MachineMemory,
    pub layout: HypervisorLayout,
    pub built: BuiltDomain,
    pub sink: Box<dyn ConsoleSink>,
    pub input: crate::machine::console::ConsoleInput,
    pub name: String,
    pub machine: &'a dyn Machine,
    pub devices: Vec<Box<dyn Device>>,
    pub kick: Arc<dyn Kick>,
    pub marks: bool,
}

impl World<'_> {
    fn paravirtual(self) -> Result<PvGuest, RunError> {
        let info = self.machine.info();
        let mut mmu = DirectPaging::new(&self.layout, self.machine.reserved_l4_entries())?;
        let mut log = TableLog::default();
        let space = VcpuSpace::new(self.built.root, &log);
        let tables =
            mmu.pin_initial(&self.memory, &mut log, self.built.root).map_err(RunError::InitialTables)?;
        let console = self.built.console_mfn.ok_or(RunError::NoRing)?;
        let store = self.built.store_mfn.ok_or(RunError::NoRing)?;
        let about = About {
            domain: DOMID,
            name: self.name,
            memory_kib: self.memory.guest_frames() * (PAGE_SIZE >> 10),
            store: (store.0, STORE_PORT),
            console: (console.0, CONSOLE_PORT),
        };

        let clock = Clock::new(info.tsc_khz, info.tsc_offset);
        let shared_info = self.layout.shared_info.maddr();
        let time = Maddr(shared_info.0 + std::mem::offset_of!(VcpuInfo, time) as u64);
        self.memory.write_obj(time, &clock.published(0))?;
        let regs = Regs {
            rip: self.built.entry_rip,
            rsp: self.built.rsp,
            rsi: self.built.rsi,
            rflags: 0x202,
            ..Regs::default()
        };
        let (mut domain, vcpu) = PvDomain::new(PvParts {
            memory: self.memory,
            mmu,
            tables,
            log,
            space,
            regs,
            shared_info,
            clock,
            console: PvConsole { ring: console.maddr(), sink: self.sink, input: self.input },
            store: PvStore::new(store.maddr(), about),
            facts: Facts {
                m2p_va: info.m2p_va,
                call_length: info.call_length,
                marks: self.marks,
                m2p: self.layout.m2p,
                grants: self.layout.grants,
                tsc_khz: info.tsc_khz,
            },
        })
        .map_err(|_| RunError::NoRing)?;
        let upcall = domain.upcalls.of(vcpu.id);
        upcall.set_mask(&domain.memory, true)?;
        domain.follow_wall_clock(clock.now())?;
        domain.connect_services();
        domain.virtio = PvDevices::new(self.devices, &domain.memory, upcall, self.kick);
        domain.virtio.publish_all(&domain.memory)?;
        Ok(PvGuest { domain, vcpu })
    }
}
