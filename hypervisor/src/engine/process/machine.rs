//! What guest processes have in common, and the first of them.

use std::io;
use std::sync::Arc;

use super::area::{GUEST_END, Lane, M2P_VA, MAX_LANES};
use super::births::{Births, Makings};
use super::child::Image;
use super::kick::ProcessKick;
use super::mirror::Mirror;
use super::script::{M2p, Terms};
use super::space::{Shared, Spaces};
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
use super::cpu::ProcessCpu;
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
    /// The thread that makes processes could not be started.
    #[error("cannot start a thread that makes guest processes: {0}{advice}", advice = Advice::of_processes(.0))]
    Thread(io::Error),
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
    pub(super) cpus: Vec<Option<ProcessCpu>>,
}

impl ProcessMachine {
    /// A machine with one virtual CPU for a guest in `memory`, run by the calling thread, which it pins to its CPU: a
    /// hand-over between two CPUs costs dozens of times one on the same.
    pub fn new(memory: &MachineMemory, layout: &HypervisorLayout) -> Result<Self, ProcessEngineError> {
        Self::with_lowest(memory, layout, Lowest::ASSUMED, 1)
    }

    /// The same for a guest that is to have addresses from `lowest` up, as [`Lowest::for_guest`] found them, and so
    /// many virtual CPUs: 64 at most. The calling thread runs the first.
    pub fn with_lowest(
        memory: &MachineMemory,
        layout: &HypervisorLayout,
        lowest: Lowest,
        vcpus: u32,
    ) -> Result<Self, ProcessEngineError> {
        let start = tsc::Instant::now();
        let features = Features::detect()?;
        let memfd = memory.memfd().ok_or(ProcessEngineError::NotShared)?;
        let lanes = u8::try_from(vcpus).unwrap_or(MAX_LANES).clamp(1, MAX_LANES);
        let m2p = M2p {
            offset: Mfn(layout.m2p.start).maddr().0,
            len: (layout.m2p.end - layout.m2p.start).max(1) * PAGE_SIZE,
        };
        let told_khz = tsc::told_khz();
        // Before the first process is made: what takes turns on one CPU is to have one setting.
        let cpuid_traps = host_cpuid::can_trap();
        let trapping = cpuid_traps.then(Trapping::begin).flatten();
        let core_limit = sys::hard_core_limit().min(1);
        let unpinned = threads::pin_to_this_cpu();
        let cpus = cpus(unpinned.as_ref());
        let terms = Terms { m2p, cpuid_traps, low_pages: lowest.privileged, core_limit, lanes, cpus };
        let kick = || ProcessKick::new(lanes).map(Arc::new).map_err(ProcessEngineError::Timer);
        let kicks = (0..lanes).map(|_| kick()).collect::<Result<Vec<_>, _>>()?;
        let image = Image::new(lanes)?;
        let memory = memfd.try_clone_to_owned().map_err(ProcessEngineError::Descriptor)?;
        let births = Births::new(Makings { image, memory, terms }).map_err(ProcessEngineError::Thread)?;
        let mirror = Mirror::new(layout.hypervisor_frames(), layout.shared(), lowest.address)?;
        let spaces = Spaces::new(births, mirror, lanes)?;
        let shared = Arc::new(Shared::new(spaces, terms, features.fpu_size(), fpu::Accepted::detect()));
        let info = EngineInfo {
            name: "process",
            transport: if lanes == 1 { "stub" } else { "syscall" },
            detail: format!(
                "sandboxed processes; {}",
                if terms.cpuid_traps { "CPUID emulated, RDTSC native" } else { "CPUID and RDTSC native" }
            ),
            call_length: if lanes == 1 { stub::CALL_LENGTH } else { stub::SYSCALL_LENGTH },
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
        let cpu = |(lane, kick)| Some(ProcessCpu::new(lane, shared.clone(), kick));
        let mut cpus: Vec<_> = Lane::all(lanes).into_iter().zip(kicks).map(cpu).collect();
        if let Some(boot) = cpus.first_mut().and_then(Option::as_mut) {
            boot.settle(unpinned, trapping).map_err(ProcessEngineError::Timer)?;
        }
        Ok(Self { info, cpus })
    }
}

/// The CPU of each virtual CPU's threads: those that may be used, by turns, from the calling thread's on.
fn cpus(allowed: Option<&libc::cpu_set_t>) -> [u16; MAX_LANES as usize] {
    let mut cpus = [0; MAX_LANES as usize];
    let mut allowed = allowed.map(threads::numbers).unwrap_or_default();
    let this = threads::this_cpu();
    let first = allowed.iter().position(|cpu| Some(usize::from(*cpu)) == this).unwrap_or(0);
    allowed.rotate_left(first);
    for (cpu, number) in cpus.iter_mut().zip(allowed.iter().cycle()) {
        *cpu = *number;
    }
    cpus
}

impl Machine for ProcessMachine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn hypercall_stub(&self, number: u32) -> [u8; 32] {
        match self.cpus.len() {
            1 => stub::hypercall_entry(number),
            _ => stub::hypercall_entry_of_lanes(number),
        }
    }

    fn reserved_l4_entries(&self) -> [u64; 16] {
        [0; 16]
    }

    fn cpu(&mut self, id: u32) -> Result<Box<dyn Cpu>, NoCpu> {
        let vcpus = u32::try_from(self.cpus.len()).unwrap_or(u32::MAX);
        let cpu = usize::try_from(id).ok().and_then(|id| self.cpus.get_mut(id));
        let cpu = cpu.ok_or(NoCpu::Absent { engine: self.info.name, id, vcpus })?;
        cpu.take().map(|cpu| Box::new(cpu) as Box<dyn Cpu>).ok_or(NoCpu::Taken(id))
    }
}
