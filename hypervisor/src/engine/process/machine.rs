//! What guest processes have in common, and the first of them.

use std::io;
use std::sync::Arc;

use super::area::{GUEST_END, M2P_VA};
use super::child::{Child, Image};
use super::context::FpuAt;
use super::kick::ProcessKick;
use super::mirror::Mirror;
use super::script::{M2p, Terms};
use super::space::Space;
use super::{fpu, stub, sys};
use crate::engine::tsc;
use crate::engine::{Coherence, Cpu, EngineInfo, Machine, NoCpu};
use crate::host::host_cpuid;
use crate::host::host_cpuid::Trapping;
use crate::host::limit::Advice;
use crate::host::threads;
use crate::host::zeroed::NoMemory;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{MachineMemory, Mfn, PAGE_SIZE};

use super::child::SpawnError;
use super::cpu::{Fpu, MAX_SPACES, ProcessCpu};
use super::lowest::Lowest;
use super::probe::{Features, Unavailable};

/// The process engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ProcessEngineError {
    /// The host cannot do it.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Machine memory cannot be shared.
    #[error("machine memory is not a memfd; create it with Backing::Memfd for the process engine")]
    NotShared,
    /// The first guest process could not be made.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The timer or its signal could not be set up.
    #[error("cannot set up the engine's timer: {0}{advice}", advice = Advice::of_timer(.0))]
    Timer(io::Error),
    /// There is no memory for the engine's tables.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// A descriptor could not be duplicated.
    #[error("cannot duplicate the memfd of guest memory: {0}{advice}", advice = Advice::of_files(.0))]
    Descriptor(io::Error),
}

/// A machine whose guest runs in processes.
#[derive(Debug)]
pub struct ProcessMachine {
    info: EngineInfo,
    /// Made with the machine: whether processes can be had here is known only then.
    boot: Option<ProcessCpu>,
}

impl ProcessMachine {
    /// A machine for a guest in `memory`, run by the calling thread, which it pins to its CPU: a hand-over
    /// between two CPUs costs dozens of times one on the same.
    pub fn new(memory: &MachineMemory, layout: &HypervisorLayout) -> Result<Self, ProcessEngineError> {
        Self::with_lowest(memory, layout, Lowest::ASSUMED)
    }

    /// The same for a guest that is to have addresses from `lowest` up, as [`Lowest::for_guest`] found them.
    pub fn with_lowest(
        memory: &MachineMemory,
        layout: &HypervisorLayout,
        lowest: Lowest,
    ) -> Result<Self, ProcessEngineError> {
        let start = tsc::Instant::now();
        let features = Features::detect()?;
        let memfd = memory.memfd().ok_or(ProcessEngineError::NotShared)?;
        let m2p = M2p {
            offset: Mfn(layout.m2p.start).maddr().0,
            len: (layout.m2p.end - layout.m2p.start).max(1) * PAGE_SIZE,
        };
        let told_khz = tsc::told_khz();
        // Before the first process is made: what takes turns on one CPU is to have one setting.
        let cpuid_traps = host_cpuid::can_trap();
        let trapping = cpuid_traps.then(Trapping::begin).flatten();
        let core_limit = sys::hard_core_limit().min(1);
        let terms = Terms { m2p, cpuid_traps, low_pages: lowest.privileged, core_limit };
        let kick = Arc::new(ProcessKick::new().map_err(ProcessEngineError::Timer)?);
        let unpinned = threads::pin_to_this_cpu();
        let image = Image::new()?;
        let mut spaces = Vec::with_capacity(MAX_SPACES);
        spaces.push(Space::new(Child::spawn(&image, memfd, terms)?));
        let info = EngineInfo {
            name: "process",
            transport: "stub",
            detail: format!(
                "sandboxed processes; {}",
                if terms.cpuid_traps { "CPUID emulated, RDTSC native" } else { "CPUID and RDTSC native" }
            ),
            call_length: stub::CALL_LENGTH,
            m2p_va: M2P_VA,
            lower_half_start: lowest.address,
            lower_half_end: GUEST_END,
            upper_half: false,
            native_selectors: false,
            tsc_khz: told_khz.unwrap_or_else(|| start.khz_since()),
            tsc_offset: 0,
            hardware: None,
            coherence: Coherence::OwnEntry,
        };
        let cpu = ProcessCpu {
            image,
            memory: memfd.try_clone_to_owned().map_err(ProcessEngineError::Descriptor)?,
            terms,
            spaces,
            current: 0,
            mirror: Mirror::new(layout.hypervisor_frames(), layout.shared(), lowest.address)?,
            kick,
            fpu: Fpu { space: 0, at: FpuAt::Registers },
            fpu_size: features.fpu_size(),
            accepted: fpu::Accepted::detect(),
            user: false,
            stepping: false,
            entries: 0,
            dead: None,
            unpinned,
            _cpuid: trapping,
        };
        Ok(Self { info, boot: Some(cpu) })
    }
}

impl Machine for ProcessMachine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn hypercall_stub(&self, number: u32) -> [u8; 32] {
        stub::hypercall_entry(number)
    }

    fn reserved_l4_entries(&self) -> [u64; 16] {
        [0; 16]
    }

    fn cpu(&mut self, id: u32) -> Result<Box<dyn Cpu>, NoCpu> {
        if id != 0 {
            return Err(NoCpu::Absent { engine: self.info.name, id, vcpus: 1 });
        }
        self.boot.take().map(|cpu| Box::new(cpu) as Box<dyn Cpu>).ok_or(NoCpu::Taken(id))
    }
}
