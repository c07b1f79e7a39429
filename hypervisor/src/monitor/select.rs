//! Choosing the engine.
//!
//! `auto` takes hardware KVM, else the process engine, else software KVM, whose exits are some twenty times
//! dearer than a process's. A transport that is named is a way into KVM, and so means KVM. What was passed
//! over, and why, is said in the report.

use super::{EngineChoice, TransportChoice};
use crate::domain::layout::HypervisorLayout;
use crate::engine::Engine;
use crate::engine::kvm::{self, HostKind, KvmEngine, KvmError, Transport};
use crate::engine::process::{ProcessEngine, ProcessEngineError};
use crate::memory::{Backing, MachineMemory};

/// No engine could be set up.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// KVM was asked for, or is all that could run this image.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The process engine was asked for.
    #[error(transparent)]
    Process(#[from] ProcessEngineError),
    /// A transport was asked for together with an engine that has none.
    #[error(
        "--transport is about KVM; the process engine has one way in: leave --transport out, or use --engine kvm"
    )]
    NoTransport,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// KVM only.
    Kvm(&'static str),
    /// The process engine only.
    Process(&'static str),
    /// KVM, then the process engine.
    KvmThenProcess(&'static str),
    /// The process engine, then KVM.
    ProcessThenKvm(&'static str),
}

/// What to try for this choice and a kernel that is (not) linked in the upper half.
pub fn plan(choice: EngineChoice, transport: TransportChoice, upper_half: bool) -> Result<Plan, SelectError> {
    plan_on(choice, transport, upper_half, kvm::host_kind())
}

fn plan_on(
    choice: EngineChoice,
    transport: TransportChoice,
    upper_half: bool,
    kvm: HostKind,
) -> Result<Plan, SelectError> {
    let named = transport.named().is_some();
    Ok(match (choice, kvm) {
        (EngineChoice::Kvm, _) => Plan::Kvm("asked for"),
        (EngineChoice::Process, _) if named => return Err(SelectError::NoTransport),
        (EngineChoice::Process, _) => Plan::Process("asked for"),
        (EngineChoice::Auto, _) if named => Plan::Kvm("a way into KVM was asked for"),
        (EngineChoice::Auto, _) if upper_half => Plan::Kvm("the kernel is linked in the upper half"),
        (EngineChoice::Auto, HostKind::Hardware) => Plan::KvmThenProcess("KVM has hardware support"),
        (EngineChoice::Auto, HostKind::Software) => {
            Plan::ProcessThenKvm("KVM is in software here, where an exit is dearer")
        }
        (EngineChoice::Auto, HostKind::Absent) => Plan::ProcessThenKvm("KVM cannot be used here"),
    })
}

impl Plan {
    /// What machine memory must be backed by.
    pub fn backing(self) -> Backing {
        match self {
            Self::Kvm(_) => Backing::Anonymous,
            _ => Backing::Memfd,
        }
    }

    /// Sets up the engine over `memory`; also says why this one.
    pub fn engine(
        self,
        memory: &MachineMemory,
        layout: &HypervisorLayout,
        transport: TransportChoice,
    ) -> Result<(Box<dyn Engine>, String), SelectError> {
        let kvm = || KvmEngine::new(memory, layout, transport.named());
        let process = || ProcessEngine::new(memory, layout);
        match self {
            Self::Kvm(why) => Ok((Box::new(kvm()?), why.to_owned())),
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
    use super::*;

    #[test]
    fn hardware_first_then_processes_then_software() {
        use EngineChoice::{Auto, Kvm, Process};
        use HostKind::{Absent, Hardware, Software};
        let plan_on = |choice, upper, kvm| plan_on(choice, TransportChoice::Auto, upper, kvm).unwrap();
        assert!(matches!(plan_on(Auto, false, Hardware), Plan::KvmThenProcess(_)));
        assert!(matches!(plan_on(Auto, false, Software), Plan::ProcessThenKvm(_)));
        assert!(matches!(plan_on(Auto, false, Absent), Plan::ProcessThenKvm(_)));
        assert!(matches!(plan_on(Auto, true, Software), Plan::Kvm(_)));
        assert!(
            matches!(plan_on(Process, true, Hardware), Plan::Process(_)),
            "as asked; the builder refuses"
        );
        assert!(matches!(plan_on(Kvm, false, Absent), Plan::Kvm(_)));
    }

    #[test]
    fn a_transport_is_never_passed_over_in_silence() {
        for transport in [TransportChoice::Pio, TransportChoice::Vmcall] {
            let on = |choice| plan_on(choice, transport, false, HostKind::Software);
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
