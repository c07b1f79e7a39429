//! The engines that a guest can be started on: a row each.
//!
//! What may not be done here: deciding between them, see [`select`](super::select).

use std::sync::atomic::{AtomicBool, Ordering};

use super::{EngineChoice, TransportChoice};
use crate::build::mapping::AddressLimits;
use crate::engine::kvm::ring0::Ring0Machine;
use crate::engine::kvm::{HostKind, KvmError, KvmMachine, Transport, Ways};
use crate::engine::process::{ADDRESSES_END, Lowest, ProcessEngineError, ProcessMachine};
use crate::engine::thread::ThreadMachine;
use crate::engine::{EngineInfo, Irqchip, Machine};
use crate::host::zeroed::check_own_room;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Backing, MachineMemory};
use crate::technique::EngineNeed;

/// What an engine is set up over.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// The machine's memory.
    pub memory: &'a MachineMemory,
    /// Where in it is what.
    pub layout: &'a HypervisorLayout,
    /// How hypercalls are to enter the host.
    pub transport: TransportChoice,
    /// Where the kernel's mapping begins.
    pub virt_base: u64,
    /// What the technique needs of it.
    pub need: EngineNeed,
    /// How many virtual CPUs it is to have.
    pub vcpus: u32,
}

/// Set by who measures what fast paths are worth.
static WITHOUT_FAST_PATHS: AtomicBool = AtomicBool::new(false);

/// Whether the engines of this process that are set up from now on have fast paths between user programs and their
/// kernel, where they can: initially they do. For measuring.
pub fn allow_fast_paths(allow: bool) {
    WITHOUT_FAST_PATHS.store(!allow, Ordering::Relaxed);
}

/// An engine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The process engine.
    #[error(transparent)]
    Process(#[from] ProcessEngineError),
}

/// An engine, as its choice sees it.
#[derive(Debug)]
pub struct Engine {
    /// Which.
    pub choice: EngineChoice,
    /// What it is called in a list of reasons.
    pub label: &'static str,
    /// What it is called in a sentence.
    pub called: &'static str,
    /// What it offers to techniques.
    pub offers: &'static [EngineNeed],
    /// What machine memory must be backed by.
    pub backing: Backing,
    /// Whether there are several ways into the host, so that `--transport` means something.
    pub has_transports: bool,
    /// What to try when it was asked for and cannot be set up; nothing for errors that say it themselves.
    pub instead: fn(&EngineError) -> &'static str,
    /// When it is tried on a host with such a KVM, lower numbers first; and why, if it is the first.
    pub rank: fn(HostKind) -> (u8, &'static str),
    /// The addresses that it can give to a kernel whose mapping begins at `virt_base`, as far as is known before it is
    /// set up.
    pub limits: fn(u64) -> AddressLimits,
    /// Sets it up.
    pub set_up: fn(Setup<'_>) -> Result<Box<dyn Machine>, EngineError>,
}

/// All engines, in the order in which reasons are listed.
pub static ENGINES: [Engine; 3] = [KVM, PROCESS, INTERPRETER];

const KVM: Engine = Engine {
    choice: EngineChoice::Kvm,
    label: "KVM",
    called: "KVM",
    offers: &[
        EngineNeed::Deprivileged,
        EngineNeed::Ring0(Irqchip::Monitor),
        EngineNeed::Ring0(Irqchip::Kernel),
    ],
    backing: Backing::Anonymous,
    has_transports: true,
    instead: |error| match error {
        EngineError::Kvm(KvmError::Vmcall(_)) => "",
        _ => "; or use --engine process",
    },
    rank: |kvm| match kvm {
        HostKind::Hardware => (0, "KVM has hardware support"),
        // An exit of software KVM costs some twenty times what one of a process does.
        HostKind::Software | HostKind::Absent => (2, "no other engine can run it"),
    },
    limits: |_| AddressLimits::XEN,
    set_up: |setup| {
        if let EngineNeed::Ring0(irqchip) = setup.need {
            return Ok(Box::new(Ring0Machine::new(setup.memory, irqchip)?));
        }
        let transport = match setup.transport {
            TransportChoice::Auto => None,
            TransportChoice::Pio => Some(Transport::Pio),
            TransportChoice::Vmcall => Some(Transport::Vmcall),
        };
        let ways = Ways { transport, fast: !WITHOUT_FAST_PATHS.load(Ordering::Relaxed) };
        Ok(Box::new(KvmMachine::with_ways(setup.memory, setup.layout, ways, setup.vcpus)?))
    },
};

const PROCESS: Engine = Engine {
    choice: EngineChoice::Process,
    label: "Processes",
    called: "the process engine",
    offers: &[EngineNeed::Deprivileged],
    backing: Backing::Memfd,
    has_transports: false,
    instead: |_| "",
    rank: |kvm| match kvm {
        HostKind::Hardware => (1, ""),
        HostKind::Software => (1, "KVM is in software here, where an exit is dearer"),
        HostKind::Absent => (1, "KVM cannot be used here"),
    },
    limits: |virt_base| AddressLimits {
        lower_half_start: Lowest::for_guest(virt_base).address,
        lower_half_end: ADDRESSES_END,
        upper_half: false,
    },
    set_up: |setup| {
        let lowest = Lowest::for_guest(setup.virt_base);
        let machine = ProcessMachine::with_lowest(setup.memory, setup.layout, lowest, setup.vcpus)?;
        // Another engine may take less of the host's memory: where this one leaves too little, that may do.
        check_own_room().map_err(ProcessEngineError::from)?;
        Ok(Box::new(machine))
    },
};

const INTERPRETER: Engine = Engine {
    choice: EngineChoice::Interpreter,
    label: "Interpreter",
    called: "the interpreter",
    offers: &[EngineNeed::Nothing],
    backing: Backing::Anonymous,
    has_transports: false,
    instead: |_| "",
    rank: |_| (0, "the technique needs no engine"),
    limits: |_| AddressLimits::XEN,
    set_up: |_| Ok(Box::new(ThreadMachine::new())),
};

/// Where an engine that is set up can map a kernel.
pub fn limits_of(info: &EngineInfo) -> AddressLimits {
    let EngineInfo { lower_half_start, lower_half_end, upper_half, .. } = *info;
    AddressLimits { lower_half_start, lower_half_end, upper_half }
}

impl EngineChoice {
    /// The row of an engine that was named; `None` for [`EngineChoice::Auto`].
    pub fn named(self) -> Option<&'static Engine> {
        ENGINES.iter().find(|engine| engine.choice == self)
    }
}
