//! A domain that goes on from a snapshot.

use std::sync::Arc;

use super::going::{Going, Guest, Kernel, Ready};
use super::save::{Everything, Facts, Processor};
use super::start::{RunError, Steps};
use super::vcpus::Seats;
use super::{Config, Report, available, select};
use crate::build::BuildError;
use crate::build::mapping::AddressLimits;
use crate::host::zeroed::check_own_room;
use crate::launch::engines::Setup;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{MachineMemory, PAGE_SIZE};
use crate::pv::state::State;
use crate::snapshot::Snapshot;
use crate::technique::{SavedParts, Technique};
use crate::text::units;

/// A snapshot that cannot be restored here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    /// The technique is gone, or does not restore.
    #[error("the snapshot is of a guest that ran by technique {0:?}, which this program does not restore")]
    Technique(String),
    /// The state of devices is not saved, so a guest that was saved has none.
    #[error(
        "a guest that was saved has no virtio devices: leave --disk, --net, --vsock, --rng and --console virtio out"
    )]
    Devices,
    /// It does not say what memory it has.
    #[error("the snapshot is damaged: its memory or its vCPUs are not as many as it says")]
    Size,
    /// A file of some KiB can say so: its memory is a hole.
    #[error(
        "the snapshot's guest has {} of memory, and this host has {}; restore it on a host that has more",
        units::bytes(*guest), units::bytes(*host)
    )]
    Larger {
        /// Bytes of the guest's memory, and of the hypervisor's for it.
        guest: u64,
        /// Bytes of the host's.
        host: u64,
    },
    /// The guest may use instructions that would be undefined here.
    #[error(
        "the snapshot was taken on a processor with features that this one lacks (CPUID leaf {leaf:#x}, sub-leaf \
         {index}, {register}, bits {missing:#x}), and its guest may use them; restore it on a processor that has them"
    )]
    Features {
        /// Where they are announced.
        leaf: u32,
        /// As above.
        index: u32,
        /// As above.
        register: &'static str,
        /// Which bits.
        missing: u32,
    },
    /// The guest may use registers that are not there.
    #[error(
        "the snapshot was taken on a processor with vector registers that this one lacks (XCR0 {0:#x}), and its guest \
         may use them; restore it on a processor that has them"
    )]
    Components(u64),
}

impl Processor {
    /// Whether `here` has all that the guest may have seen.
    fn fits(&self, here: &Self) -> Result<(), NotHere> {
        let components = self.components & !here.components;
        if components != 0 {
            return Err(NotHere::Components(components));
        }
        for &(leaf, index, register, bits) in &self.features {
            let same = |known: &&(u32, u32, u8, u32)| (known.0, known.1, known.2) == (leaf, index, register);
            let missing = bits & !here.features.iter().find(same).map_or(0, |known| known.3);
            if missing != 0 {
                let register =
                    ["EAX", "EBX", "ECX", "EDX"].get(usize::from(register)).copied().unwrap_or("?");
                return Err(NotHere::Features { leaf, index, register, missing });
            }
        }
        Ok(())
    }
}

/// Goes on with a domain that was saved, to its end.
pub(super) fn run(config: Config, snapshot: Snapshot, mut steps: Steps) -> Result<Report, RunError> {
    has_room(snapshot.frames(), available::total())?;
    let contents = snapshot.contents::<Everything<State>>()?;
    let (facts, technique) = check(&config, &snapshot, &contents.state.facts)?;
    let layout = layout(technique, facts.frames, facts.vcpus);
    steps.done("read the snapshot");

    let fits = |limits: AddressLimits| limits.check_range(facts.virt_base, facts.mapped_bytes);
    if let Some(engine) = config.engine.named() {
        let refused = |error: BuildError| RunError::Build { image: facts.image_name.clone(), error };
        fits((engine.limits)(facts.virt_base)).map_err(refused)?;
    }
    let plan = select::plan(technique, config.engine, config.transport, facts.virt_base, fits)?;
    let memory = MachineMemory::new(layout.hypervisor_frames(), facts.frames, plan.backing())?;
    snapshot.load(&contents, &memory, &layout.engine)?;
    steps.done("map its memory");
    let (mut machine, why) = plan.engine(Setup {
        memory: &memory,
        layout: &layout,
        transport: config.transport,
        virt_base: facts.virt_base,
        need: technique.engine,
        vcpus: facts.vcpus,
    })?;
    check_own_room()?;
    let seats = Seats::new(&mut *machine, facts.vcpus)?;
    steps.done("set up the engine");

    let mut info = machine.info().clone();
    info.detail = format!("{} ({why})", info.detail);
    tracing::info!(transport = info.transport, "restored on engine {}: {why}", info.name);
    let guest = Guest {
        image_name: facts.image_name.clone(),
        frames: facts.frames,
        vcpus: facts.vcpus,
        virt_base: facts.virt_base,
        mapped_bytes: facts.mapped_bytes,
    };
    let restore = technique.restore.ok_or_else(|| NotHere::Technique(technique.name.to_owned()))?;
    let (given, going) = Going::split(config, steps);
    let domain = restore(SavedParts {
        memory,
        layout: layout.clone(),
        state: contents.state.state,
        sink: given.sink,
        input: given.input,
        machine: &*machine,
        kicks: [seats.boot_kick()].into_iter().chain(seats.other_kicks()).collect(),
        marks: given.marks,
    })?;
    let ready = Ready { technique, info, layout, machine, seats, domain };
    let snapshot = Arc::new(snapshot);
    let later = snapshot.clone();
    // A damaged image costs its symbols.
    let kernel = Kernel {
        file: &[],
        elf: &|| snapshot.image().unwrap_or_default().into(),
        elf_later: Box::new(move || later.image().unwrap_or_default()),
    };
    going.run(ready, &guest, kernel)
}

/// Whether `host` bytes of memory, if that is known, are enough for so many frames. For each of them something is
/// written before the guest runs.
fn has_room(frames: u64, host: Option<u64>) -> Result<(), NotHere> {
    let guest = frames.saturating_mul(PAGE_SIZE);
    match host {
        Some(host) if guest > host => Err(NotHere::Larger { guest, host }),
        _ => Ok(()),
    }
}

fn layout(technique: &Technique, frames: u64, vcpus: u32) -> HypervisorLayout {
    HypervisorLayout::with_vcpus(frames, (technique.shadow_frames)(frames), technique.own_code, vcpus)
}

/// Whether the guest can go on here.
fn check(
    config: &Config,
    snapshot: &Snapshot,
    facts: &Facts,
) -> Result<(Facts, &'static Technique), NotHere> {
    let technique = Technique::named(&facts.technique).filter(|technique| technique.restore.is_some());
    let technique =
        technique.ok_or_else(|| NotHere::Technique(facts.technique.chars().take(40).collect()))?;
    if !config.devices.is_empty() {
        return Err(NotHere::Devices);
    }
    // The number of all frames is bounded by the file's length: so is the guest's, and what the layout computes of it.
    let possible = facts.frames <= snapshot.frames() && (1..=technique.max_vcpus).contains(&facts.vcpus);
    if !possible || layout(technique, facts.frames, facts.vcpus).total != snapshot.frames() {
        return Err(NotHere::Size);
    }
    facts.processor.fits(&Processor::of_this_host())?;
    Ok((facts.clone(), technique))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(components: u64, bits: u32) -> Processor {
        Processor { components, features: vec![(7, 0, 1, bits)] }
    }

    #[test]
    fn a_guest_is_no_larger_than_the_host() {
        assert_eq!(has_room(1 << 18, Some(1 << 30)), Ok(()));
        assert_eq!(has_room(1 << 30, None), Ok(()));
        let guest = (1 << 30) + PAGE_SIZE;
        assert_eq!(has_room((1 << 18) + 1, Some(1 << 30)), Err(NotHere::Larger { guest, host: 1 << 30 }));
        assert!(has_room(crate::snapshot::format::MOST_FRAMES, available::total()).is_err());
    }

    #[test]
    fn a_processor_may_have_more_and_not_less() {
        let here = processor(0b111, 0b1011);
        assert_eq!(processor(0b11, 0b11).fits(&here), Ok(()));
        assert_eq!(here.fits(&here), Ok(()));
        assert_eq!(processor(0b1111, 0).fits(&here), Err(NotHere::Components(0b1000)));
        let missing = NotHere::Features { leaf: 7, index: 0, register: "EBX", missing: 0b100 };
        assert_eq!(processor(0b11, 0b101).fits(&here), Err(missing));
        let other = Processor { components: 0, features: vec![(9, 9, 200, 1)] };
        assert!(other.fits(&here).is_err(), "a register that nobody knows");
    }
}
