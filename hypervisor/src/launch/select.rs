//! Choosing the engine.
//!
//! `auto` takes hardware KVM, else the process engine, else software KVM, whose exits are some twenty times
//! dearer than a process's. A transport that is named is a way into KVM, and so means KVM. What was passed
//! over, and why, is said in the report.

use super::{EngineChoice, TransportChoice};
use crate::build::BuildError;
use crate::build::mapping::AddressLimits;
use crate::engine::Machine;
use crate::engine::kvm;
use crate::engine::kvm::{HostKind, KvmError, KvmMachine, Transport};
use crate::engine::process::{Lowest, ProcessEngineError, ProcessMachine};
use crate::host::zeroed::check_own_room;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Backing, MachineMemory};

/// No engine could be set up.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// KVM was asked for.
    #[error("{0}; or use --engine process")]
    Kvm(KvmError),
    /// KVM was asked for, in a way that it cannot be entered.
    #[error(transparent)]
    Transport(KvmError),
    /// The process engine was asked for.
    #[error(transparent)]
    Process(#[from] ProcessEngineError),
    /// A transport was asked for together with an engine that has none.
    #[error(
        "--transport is about KVM; the process engine has one way in: leave --transport out, or use --engine kvm"
    )]
    NoTransport,
    /// KVM is all that could run this image.
    #[error("no engine here can run this kernel. KVM: {kvm}. Processes: {process}")]
    OnlyKvm {
        /// Why not KVM.
        kvm: KvmError,
        /// Why the kernel does not fit into a process.
        process: BuildError,
    },
    /// Everything was tried.
    #[error("no engine works here. KVM: {kvm}. Processes: {process}")]
    Nothing {
        /// Why not KVM.
        kvm: KvmError,
        /// Why not processes.
        process: ProcessEngineError,
    },
}

impl TransportChoice {
    /// The one that was named, if any.
    fn named(self) -> Option<Transport> {
        match self {
            Self::Auto => None,
            Self::Pio => Some(Transport::Pio),
            Self::Vmcall => Some(Transport::Vmcall),
        }
    }
}

/// An engine to try, and the one to fall back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// KVM only.
    Kvm(&'static str),
    /// KVM only, because a process does not have the addresses that the kernel is linked at.
    OnlyKvm(BuildError),
    /// The process engine only.
    Process(&'static str),
    /// KVM, then the process engine.
    KvmThenProcess(&'static str),
    /// The process engine, then KVM.
    ProcessThenKvm(&'static str),
}

/// What to try for this choice and a kernel that fits into a process, or why it does not.
pub fn plan(
    choice: EngineChoice,
    transport: TransportChoice,
    fits_process: Result<(), BuildError>,
) -> Result<Plan, SelectError> {
    plan_on(choice, transport, fits_process, kvm::host_kind())
}

fn plan_on(
    choice: EngineChoice,
    transport: TransportChoice,
    fits_process: Result<(), BuildError>,
    kvm: HostKind,
) -> Result<Plan, SelectError> {
    let named = transport.named().is_some();
    Ok(match (choice, fits_process, kvm) {
        (EngineChoice::Kvm, ..) => Plan::Kvm("asked for"),
        (EngineChoice::Process, ..) if named => return Err(SelectError::NoTransport),
        (EngineChoice::Process, ..) => Plan::Process("asked for"),
        (EngineChoice::Auto, ..) if named => Plan::Kvm("a way into KVM was asked for"),
        (EngineChoice::Auto, Err(why), _) => Plan::OnlyKvm(why),
        (EngineChoice::Auto, Ok(()), HostKind::Hardware) => Plan::KvmThenProcess("KVM has hardware support"),
        (EngineChoice::Auto, Ok(()), HostKind::Software) => {
            Plan::ProcessThenKvm("KVM is in software here, where an exit is dearer")
        }
        (EngineChoice::Auto, Ok(()), HostKind::Absent) => Plan::ProcessThenKvm("KVM cannot be used here"),
    })
}

/// What the process engine offers a kernel, of the low addresses those from `lowest` up.
pub fn process_limits(lowest: Lowest) -> AddressLimits {
    AddressLimits {
        lower_half_start: lowest.address,
        lower_half_end: crate::engine::process::ADDRESSES_END,
        upper_half: false,
    }
}

impl Plan {
    /// What machine memory must be backed by.
    pub fn backing(&self) -> Backing {
        match self {
            Self::Kvm(_) | Self::OnlyKvm(_) => Backing::Anonymous,
            _ => Backing::Memfd,
        }
    }

    /// Sets up the engine over `memory`; also says why this one. A process is to have addresses from `lowest` up.
    pub fn engine(
        self,
        memory: &MachineMemory,
        layout: &HypervisorLayout,
        transport: TransportChoice,
        lowest: Lowest,
    ) -> Result<(Box<dyn Machine>, String), SelectError> {
        let kvm = || KvmMachine::new(memory, layout, transport.named());
        let process = || {
            let engine = ProcessMachine::with_lowest(memory, layout, lowest)?;
            // KVM takes less of the host's memory: where this leaves too little, that may do.
            check_own_room()?;
            Ok::<_, ProcessEngineError>(engine)
        };
        match self {
            Self::Kvm(why) => match kvm() {
                Ok(engine) => Ok((Box::new(engine), why.to_owned())),
                Err(error @ KvmError::Vmcall(_)) => Err(SelectError::Transport(error)),
                Err(error) => Err(SelectError::Kvm(error)),
            },
            Self::OnlyKvm(process) => match kvm() {
                Ok(engine) => {
                    Ok((Box::new(engine), "the kernel is linked where only KVM can map it".to_owned()))
                }
                Err(kvm) => Err(SelectError::OnlyKvm { kvm, process }),
            },
            Self::Process(why) => Ok((Box::new(process()?), why.to_owned())),
            Self::KvmThenProcess(why) => match kvm() {
                Ok(engine) => Ok((Box::new(engine), why.to_owned())),
                Err(kvm) => match process() {
                    Ok(engine) => Ok((Box::new(engine), format!("KVM failed: {kvm}"))),
                    Err(process) => Err(SelectError::Nothing { kvm, process }),
                },
            },
            Self::ProcessThenKvm(why) => match process() {
                Ok(engine) => Ok((Box::new(engine), why.to_owned())),
                Err(process) => match kvm() {
                    Ok(engine) => Ok((Box::new(engine), format!("the process engine failed: {process}"))),
                    Err(kvm) => Err(SelectError::Nothing { kvm, process }),
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::launch::select::*;

    fn elsewhere() -> BuildError {
        BuildError::VirtualRange { va: 0xffff_ffff_8000_0000, bytes: 1 << 20 }
    }

    #[test]
    fn hardware_first_then_processes_then_software() {
        use EngineChoice::{Auto, Kvm, Process};
        use HostKind::{Absent, Hardware, Software};
        let plan_on = |choice, fits, kvm| plan_on(choice, TransportChoice::Auto, fits, kvm).unwrap();
        assert!(matches!(plan_on(Auto, Ok(()), Hardware), Plan::KvmThenProcess(_)));
        assert!(matches!(plan_on(Auto, Ok(()), Software), Plan::ProcessThenKvm(_)));
        assert!(matches!(plan_on(Auto, Ok(()), Absent), Plan::ProcessThenKvm(_)));
        for kvm in [Absent, Hardware, Software] {
            assert_eq!(plan_on(Auto, Err(elsewhere()), kvm), Plan::OnlyKvm(elsewhere()));
        }
        let process = plan_on(Process, Err(elsewhere()), Hardware);
        assert!(matches!(process, Plan::Process(_)), "as asked; the builder refuses");
        assert!(matches!(plan_on(Kvm, Ok(()), Absent), Plan::Kvm(_)));
    }

    /// The advice to try the other engine once stood beside the reason that it cannot be.
    #[test]
    fn a_kernel_for_kvm_only_is_not_sent_to_the_process_engine() {
        let only = SelectError::OnlyKvm { kvm: KvmError::Absent, process: elsewhere() }.to_string();
        assert!(only.contains("/dev/kvm") && only.contains("0xffffffff80000000"), "{only}");
        assert!(!only.contains("--engine process"), "{only}");
        assert!(SelectError::Kvm(KvmError::Absent).to_string().ends_with("or use --engine process"));
    }

    #[test]
    fn a_transport_is_never_passed_over_in_silence() {
        for transport in [TransportChoice::Pio, TransportChoice::Vmcall] {
            let on = |choice| plan_on(choice, transport, Ok(()), HostKind::Software);
            assert!(matches!(on(EngineChoice::Auto), Ok(Plan::Kvm(_))));
            assert!(matches!(on(EngineChoice::Kvm), Ok(Plan::Kvm(_))));
            assert!(matches!(on(EngineChoice::Process), Err(SelectError::NoTransport)));
        }
    }

    #[test]
    fn processes_need_memory_that_can_be_shared() {
        assert_eq!(Plan::Kvm("").backing(), Backing::Anonymous);
        assert_eq!(Plan::ProcessThenKvm("").backing(), Backing::Memfd);
    }
}
