//! From a configuration to a running domain, and the report when it has ended.
//!
//! Start-up does what the first instruction needs and nothing else, and times each step.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use super::available;
use super::engines::limits_of;
use super::going::{Going, Guest, Kernel, Ready};
use super::stage::{Stage, StageError, Wanted, last_resort};
use super::vcpus::Seats;
use super::{Config, Report, restore, save, select};
use crate::build;
use crate::build::mapping::AddressLimits;
use crate::build::{BuildError, DomainConfig};
use crate::engine::NoCpu;
use crate::host::limit::Advice;
use crate::host::zeroed::{NoMemory, check_own_room};
use crate::image::error::ImageError;
use crate::image::{GuestKind, Image};
use crate::machine::memory::{CreateError, PAGE_SIZE};
use crate::pv::domain::{CONSOLE_PORT, STORE_PORT};
use crate::pv::hypercall::FEATURES;
use crate::snapshot::OpenError;
use crate::technique::{MakeError, Parts, Technique};
use crate::trace;

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
    /// The snapshot cannot be used.
    #[error(transparent)]
    Snapshot(#[from] OpenError),
    /// The snapshot is of a guest that this host or this command cannot run.
    #[error(transparent)]
    Restore(#[from] restore::NotHere),
    /// The guest cannot be saved.
    #[error(transparent)]
    Save(#[from] save::NeverSaved),
    /// The host has no event descriptors left.
    #[error("cannot make an eventfd: {0}{advice}", advice = Advice::of_files(.0))]
    Eventfd(std::io::Error),
    /// The host has no room for the thread of a virtual CPU, or for what belongs to it.
    #[error("cannot run a virtual CPU on a thread of its own: {0}{advice}", advice = Advice::of_processes(.0))]
    Thread(std::io::Error),
}

/// What an image that demands "writable_page_tables" gets: its stores to L1 tables may trap, and are done for it
/// (public/features.h; every Linux image demands it, and Xen does not announce it to running domains either).
const TRAPPED_STORES: u32 = 1 << paravane_abi::features::XENFEAT_WRITABLE_PAGE_TABLES;

/// Times the steps of start-up.
pub(super) struct Steps {
    pub(super) start: Instant,
    last: Instant,
    pub(super) list: Vec<(&'static str, u64)>,
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
    pub(super) fn begin() -> Self {
        let start = Instant::now();
        Self { start, last: start, list: Vec::with_capacity(8) }
    }
    pub(super) fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        let ns = nanos(now - self.last);
        tracing::debug!(us = ns / 1000, "{name}");
        self.list.push((name, ns));
        self.last = now;
    }
}

pub(super) fn nanos(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs a domain to its end.
///
/// # Errors
/// When it cannot be started; whatever happens afterwards is in the [`Report`].
pub fn run(mut config: Config) -> Result<Report, RunError> {
    let mut steps = Steps::begin();
    save::check(&config)?;
    if let Some(snapshot) = config.restore.take() {
        return restore::run(config, snapshot, steps);
    }
    let name = config.image_name.clone();
    let (file, mem_bytes) = (Arc::new(std::mem::take(&mut config.image)), config.mem_bytes);
    let image = Image::parse_within(&file, mem_bytes)
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
    let seats = Seats::new(&mut *machine, config.vcpus)?;
    steps.done("set up the engine");

    let mut info = machine.info().clone();
    info.detail = format!("{} ({why})", info.detail);
    tracing::info!(transport = info.transport, "{} on engine {}: {why}", technique.name, info.name);
    let building = DomainConfig { limits: limits_of(&info), ..building };
    let built = build::build(&building, &image, &memory, &layout, |n| machine.hypercall_stub(n))
        .map_err(|error| RunError::Build { image: name, error })?;
    steps.done("build the domain");

    let guest = Guest {
        image_name: config.image_name.clone(),
        frames,
        vcpus: config.vcpus,
        virt_base,
        mapped_bytes: built.mapped_bytes,
    };
    let (given, going) = Going::split(config, steps);
    let domain = (technique.make)(Parts {
        memory,
        layout: layout.clone(),
        image: &image,
        built,
        sink: given.sink,
        input: given.input,
        name: domain_name(&guest.image_name),
        machine: &*machine,
        devices: given.devices,
        kick: seats.boot_kick(),
        kicks: seats.other_kicks().collect(),
        marks: given.marks,
    })?;
    let ready = Ready { technique, info, layout, machine, seats, domain };
    let kernel = Kernel {
        file: &file,
        elf: &|| Cow::Borrowed(image.elf()),
        // Unpacked again: it is small, and hardly anybody looks.
        elf_later: {
            let file = file.clone();
            let elf = move || Some(Image::parse_within(&file, mem_bytes).ok()?.elf().to_vec());
            Box::new(move || elf().unwrap_or_default())
        },
    };
    going.run(ready, &guest, kernel)
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
