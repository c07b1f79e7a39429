//! A running domain, saved when it is told to be.

use std::ops::Range;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::going::Guest;
use super::{Config, Saved, SnapshotTo};
use crate::engine::EngineInfo;
use crate::host::host_cpuid;
use crate::monitor::Control;
use crate::pv::state::{State, at_most};
use crate::snapshot::{Parts, write};
use crate::technique::{Domain, TECHNIQUES, Technique};
use crate::x86::guest_cpuid::{available, filter};

/// A guest that cannot be saved, however it comes to run.
#[derive(Debug, thiserror::Error)]
pub enum NeverSaved {
    /// Its technique keeps state that is not saved.
    #[error("technique {0} cannot save a guest (--snapshot-to): {able} can", able = able())]
    Technique(&'static str),
    /// The state of devices is not saved.
    #[error(
        "a guest with virtio devices cannot be saved: leave --snapshot-to out, or --disk, --net, --vsock, --rng and \
         --console virtio"
    )]
    Devices,
}

fn able() -> String {
    let able = TECHNIQUES.iter().filter(|technique| technique.restore.is_some());
    able.map(|technique| technique.name).collect::<Vec<_>>().join(" or ")
}

/// Refuses what could never be saved, before anything is set up.
pub(super) fn check(config: &Config) -> Result<(), NeverSaved> {
    if config.snapshot_to.is_none() {
        return Ok(());
    }
    if !config.devices.is_empty() {
        return Err(NeverSaved::Devices);
    }
    match config.technique {
        Some(technique) if technique.restore.is_none() => Err(NeverSaved::Technique(technique.name)),
        _ => Ok(()),
    }
}

/// What is saved besides memory, with the state of a domain as what it is written from or read into.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Everything<S> {
    pub facts: Facts,
    pub state: S,
}

/// What decides whether a saved domain can go on here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    /// The program's version, for people.
    pub program: String,
    pub technique: String,
    pub engine: String,
    pub image_name: String,
    pub frames: u64,
    pub vcpus: u32,
    /// Where the kernel is mapped.
    pub virt_base: u64,
    pub mapped_bytes: u64,
    pub processor: Processor,
}

/// What the guest may have seen of the processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Processor {
    /// State components that it may have used (XCR0).
    pub components: u64,
    /// Leaf, sub-leaf, register (0 for EAX to 3 for EDX), and its feature bits.
    #[serde(deserialize_with = "at_most::<64, _, _>")]
    pub features: Vec<(u32, u32, u8, u32)>,
}

/// The registers of CPUID that hold features: leaf, sub-leaf, register.
const FEATURES: [(u32, u32, u8); 10] = [
    (1, 0, 2),
    (1, 0, 3),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (7, 1, 0),
    (0xd, 1, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
    (0x8000_0008, 0, 1),
];

impl Processor {
    /// This host's, as guests see it.
    pub fn of_this_host() -> Self {
        let components = available(host_cpuid::xcr0());
        let mut features = Vec::with_capacity(FEATURES.len());
        let mut last = None;
        for (leaf, index, register) in FEATURES {
            // CPUID may take tens of microseconds where it traps.
            let answer = match last {
                Some((key, answer)) if key == (leaf, index) => answer,
                _ => filter(leaf, index, host_cpuid::query(leaf, index), components),
            };
            last = Some(((leaf, index), answer));
            let bits = [answer.eax, answer.ebx, answer.ecx, answer.edx];
            features.push((leaf, index, register, bits.get(usize::from(register)).copied().unwrap_or(0)));
        }
        Self { components, features }
    }
}

impl Facts {
    /// Those of a guest that is about to run.
    pub fn of(guest: &Guest, technique: &Technique, engine: &EngineInfo) -> Self {
        Self {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            technique: technique.name.to_owned(),
            engine: engine.name.to_owned(),
            image_name: guest.image_name.clone(),
            frames: guest.frames,
            vcpus: guest.vcpus,
            virt_base: guest.virt_base,
            mapped_bytes: guest.mapped_bytes,
            processor: Processor::of_this_host(),
        }
    }
}

/// Has the domain saved on [`Command::Save`](crate::monitor::Command::Save). `without` are the engine's frames.
pub(super) fn on_command(
    control: &Control,
    domain: &dyn Domain,
    (to, facts): (SnapshotTo, Facts),
    without: Range<u64>,
    elf: &[u8],
) -> Result<(), NeverSaved> {
    let Some(saver) = domain.saver() else {
        let named = Technique::named(&facts.technique);
        return Err(NeverSaved::Technique(named.map_or("", |technique| technique.name)));
    };
    let SnapshotTo { path, mut tell } = to;
    let elf = elf.to_vec();
    let everything = move |state: State| Everything { facts: facts.clone(), state };
    control.on_save(Box::new(move || {
        let began = Instant::now();
        let written = saver.state().map_err(|error| error.to_string()).and_then(|state| {
            let state = everything(state);
            let parts =
                Parts { memory: saver.memory(), without: without.clone(), state: &state, image: &elf };
            write(&path, &parts).map_err(|error| error.to_string())
        });
        tell(written.map(|summary| Saved { summary, took: began.elapsed() }));
    }));
    Ok(())
}
