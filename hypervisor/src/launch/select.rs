//! Choosing the engine.
//!
//! `auto` tries the engines that can run the kernel, the cheapest on this host first: hardware KVM, the process engine,
//! software KVM. A transport that is named is a way into KVM, and so means KVM. What was passed over, and why, is said
//! in the report.

use super::engines::{ENGINES, Engine, EngineError, Setup};
use super::{EngineChoice, TransportChoice};
use crate::build::BuildError;
use crate::build::mapping::AddressLimits;
use crate::engine::Machine;
use crate::engine::kvm::{self, HostKind};
use crate::machine::memory::Backing;
use crate::technique::{EngineNeed, Technique};

/// No engine could be set up.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// One was asked for.
    #[error("{error}{instead}")]
    Named {
        /// Why not that one.
        error: EngineError,
        /// What may do instead.
        instead: &'static str,
    },
    /// A transport was asked for together with an engine that has none.
    #[error(
        "--transport is about KVM; the process engine has one way in: leave --transport out, or use --engine kvm"
    )]
    NoTransport,
    /// A transport was asked for together with a technique that uses none.
    #[error(
        "--transport is how a kernel at CPL 3 calls KVM; {technique} has no such calls: leave --transport out"
    )]
    NoCalls {
        /// Which technique.
        technique: &'static str,
    },
    /// The engine that was asked for does not offer what the technique needs.
    #[error("technique {technique} does not run on {engine}; {instead}")]
    Technique {
        /// Which technique.
        technique: &'static str,
        /// Which engine.
        engine: &'static str,
        /// What may do instead.
        instead: String,
    },
    /// Some cannot run this kernel, and the others do not work.
    #[error("no engine here can run this kernel. {0}")]
    Kernel(Reasons),
    /// Everything was tried.
    #[error("no engine works here. {0}")]
    Nothing(Reasons),
}

/// Why not, engine by engine.
#[derive(Debug)]
pub struct Reasons(Vec<(&'static Engine, String)>);

impl std::fmt::Display for Reasons {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = ENGINES.iter().filter_map(|engine| {
            let reason = self.0.iter().find(|(of, _)| of.choice == engine.choice);
            reason.map(|(engine, why)| format!("{}: {why}", engine.label))
        });
        f.write_str(&all.collect::<Vec<_>>().join(". "))
    }
}

/// The engines to try, in this order.
pub struct Plan {
    candidates: Vec<&'static Engine>,
    /// Why the first of them is the first.
    why: String,
    /// Those that the kernel does not fit into, and why.
    unfit: Vec<(&'static Engine, BuildError)>,
    /// The only candidate was asked for.
    asked: bool,
}

/// What to try for this choice, given whether the kernel fits into what an engine can map.
pub fn plan(
    technique: &Technique,
    choice: EngineChoice,
    transport: TransportChoice,
    virt_base: u64,
    fits: impl Fn(AddressLimits) -> Result<(), BuildError>,
) -> Result<Plan, SelectError> {
    let fits = |engine: &Engine| fits((engine.limits)(virt_base));
    plan_on(technique, choice, transport, fits, kvm::host_kind())
}

fn plan_on(
    technique: &Technique,
    choice: EngineChoice,
    transport: TransportChoice,
    fits: impl Fn(&Engine) -> Result<(), BuildError>,
    kvm: HostKind,
) -> Result<Plan, SelectError> {
    let needs_transports = transport != TransportChoice::Auto;
    let asked = |engine, why: &str| Plan {
        candidates: vec![engine],
        why: why.to_owned(),
        unfit: Vec::new(),
        asked: true,
    };
    if needs_transports && technique.engine != EngineNeed::Deprivileged {
        return Err(SelectError::NoCalls { technique: technique.name });
    }
    let able = |engine: &&'static Engine| engine.offers.contains(&technique.engine);
    if let Some(engine) = choice.named() {
        if !able(&engine) {
            return Err(not_on(technique, engine));
        }
        let possible = engine.has_transports || !needs_transports;
        return if possible { Ok(asked(engine, "asked for")) } else { Err(SelectError::NoTransport) };
    }
    if needs_transports && let Some(engine) = ENGINES.iter().filter(able).find(|engine| engine.has_transports)
    {
        return Ok(asked(engine, "a way into KVM was asked for"));
    }
    let (mut candidates, mut unfit) = (Vec::new(), Vec::new());
    for engine in ENGINES.iter().filter(able) {
        match fits(engine) {
            Ok(()) => candidates.push(engine),
            Err(why) => unfit.push((engine, why)),
        }
    }
    candidates.sort_by_key(|engine| (engine.rank)(kvm).0);
    let why = match unfit.is_empty() {
        true => candidates.first().map_or("", |first| (first.rank)(kvm).1).to_owned(),
        false => {
            let able: Vec<_> = candidates.iter().map(|engine| engine.called).collect();
            format!("the kernel is linked where only {} can map it", able.join(" and "))
        }
    };
    Ok(Plan { candidates, why, unfit, asked: false })
}

fn not_on(technique: &Technique, engine: &Engine) -> SelectError {
    let able = ENGINES.iter().filter(|engine| engine.offers.contains(&technique.engine));
    let names: Vec<_> = able.map(|engine| format!("--engine {}", engine.choice.name())).collect();
    let instead = match names.is_empty() {
        true => "no engine offers what it needs".to_owned(),
        false => format!("use {}, or leave the option out", names.join(" or ")),
    };
    SelectError::Technique { technique: technique.name, engine: engine.called, instead }
}

impl Plan {
    /// What machine memory must be backed by, so that any of the candidates can use it.
    pub fn backing(&self) -> Backing {
        let shared = self.candidates.iter().any(|engine| engine.backing == Backing::Memfd);
        if shared { Backing::Memfd } else { Backing::Anonymous }
    }

    /// Sets up the first engine that works; also says why it was taken.
    pub fn engine(self, setup: Setup<'_>) -> Result<(Box<dyn Machine>, String), SelectError> {
        let mut failed: Vec<(&'static Engine, EngineError)> = Vec::new();
        for engine in &self.candidates {
            match (engine.set_up)(setup) {
                Ok(machine) if failed.is_empty() => return Ok((machine, self.why)),
                Ok(machine) => return Ok((machine, failures(&failed))),
                Err(error) if self.asked => {
                    let instead = (engine.instead)(&error);
                    return Err(SelectError::Named { error, instead });
                }
                Err(error) => {
                    tracing::info!("{} is passed over: {error}", engine.called);
                    failed.push((engine, error));
                }
            }
        }
        let failed = failed.into_iter().map(|(engine, error)| (engine, error.to_string()));
        let unfit = self.unfit.into_iter().map(|(engine, error)| (engine, error.to_string()));
        let is_kernel = unfit.len() != 0;
        let reasons = Reasons(failed.chain(unfit).collect());
        Err(if is_kernel { SelectError::Kernel(reasons) } else { SelectError::Nothing(reasons) })
    }
}

fn failures(failed: &[(&'static Engine, EngineError)]) -> String {
    let all: Vec<_> =
        failed.iter().map(|(engine, error)| format!("{} failed: {error}", engine.called)).collect();
    all.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kvm::KvmError;
    use crate::technique::TECHNIQUES;

    fn trap() -> &'static Technique {
        Technique::named("trap").unwrap()
    }

    fn elsewhere() -> BuildError {
        BuildError::VirtualRange { va: 0xffff_ffff_8000_0000, bytes: 1 << 20 }
    }

    fn everywhere(_: &Engine) -> Result<(), BuildError> {
        Ok(())
    }

    /// As a kernel in the upper half.
    fn on_kvm_only(engine: &Engine) -> Result<(), BuildError> {
        if engine.choice == EngineChoice::Kvm { Ok(()) } else { Err(elsewhere()) }
    }

    fn order(plan: &Plan) -> Vec<EngineChoice> {
        plan.candidates.iter().map(|engine| engine.choice).collect()
    }

    #[test]
    fn hardware_first_then_processes_then_software() {
        use EngineChoice::{Auto, Kvm, Process};
        use HostKind::{Absent, Hardware, Software};
        let auto = |kvm| plan_on(trap(), Auto, TransportChoice::Auto, everywhere, kvm).unwrap();
        assert_eq!(
            (order(&auto(Hardware)), &*auto(Hardware).why),
            (vec![Kvm, Process], "KVM has hardware support")
        );
        assert_eq!(order(&auto(Software)), [Process, Kvm]);
        assert_eq!(auto(Software).why, "KVM is in software here, where an exit is dearer");
        assert_eq!(
            (order(&auto(Absent)), &*auto(Absent).why),
            (vec![Process, Kvm], "KVM cannot be used here")
        );
        for kvm in [Absent, Hardware, Software] {
            let plan = plan_on(trap(), Auto, TransportChoice::Auto, on_kvm_only, kvm).unwrap();
            assert_eq!((order(&plan), plan.unfit.len()), (vec![Kvm], 1));
            assert_eq!(plan.why, "the kernel is linked where only KVM can map it");
        }
        let process = plan_on(trap(), Process, TransportChoice::Auto, on_kvm_only, Hardware).unwrap();
        assert_eq!(order(&process), [Process], "as asked; the builder refuses");
        assert_eq!(order(&plan_on(trap(), Kvm, TransportChoice::Auto, everywhere, Absent).unwrap()), [Kvm]);
    }

    fn reason(choice: EngineChoice, why: &str) -> (&'static Engine, String) {
        (choice.named().unwrap(), why.to_owned())
    }

    /// The advice to try the other engine once stood beside the reason that it cannot be.
    #[test]
    fn a_kernel_for_kvm_only_is_not_sent_to_the_process_engine() {
        let process = reason(EngineChoice::Process, &elsewhere().to_string());
        let kvm = reason(EngineChoice::Kvm, &KvmError::Absent.to_string());
        let only = SelectError::Kernel(Reasons(vec![process, kvm])).to_string();
        assert!(only.contains("/dev/kvm") && only.contains("0xffffffff80000000"), "{only}");
        assert!(!only.contains("--engine process"), "{only}");
        let error = EngineError::from(KvmError::Absent);
        let instead = (EngineChoice::Kvm.named().unwrap().instead)(&error);
        assert!(SelectError::Named { error, instead }.to_string().ends_with("or use --engine process"));
    }

    #[test]
    fn reasons_are_listed_in_the_order_of_the_table() {
        let reasons = vec![reason(EngineChoice::Process, "b"), reason(EngineChoice::Kvm, "a")];
        let text = SelectError::Nothing(Reasons(reasons)).to_string();
        assert_eq!(text, "no engine works here. KVM: a. Processes: b");
    }

    #[test]
    fn a_transport_is_never_passed_over_in_silence() {
        for transport in [TransportChoice::Pio, TransportChoice::Vmcall] {
            let on = |choice| plan_on(trap(), choice, transport, everywhere, HostKind::Software);
            assert_eq!(order(&on(EngineChoice::Auto).unwrap()), [EngineChoice::Kvm]);
            assert_eq!(order(&on(EngineChoice::Kvm).unwrap()), [EngineChoice::Kvm]);
            assert!(matches!(on(EngineChoice::Process), Err(SelectError::NoTransport)));
        }
    }

    /// It was accepted, and meant nothing.
    #[test]
    fn a_technique_without_calls_takes_no_transport() {
        for technique in TECHNIQUES.iter().filter(|t| t.engine != EngineNeed::Deprivileged) {
            for choice in [EngineChoice::Auto, EngineChoice::Kvm] {
                let plan = plan_on(technique, choice, TransportChoice::Pio, everywhere, HostKind::Hardware);
                let Err(error) = plan else { panic!("{} with a transport", technique.name) };
                assert!(
                    error.to_string().contains(&format!("{} has no such calls", technique.name)),
                    "{error}"
                );
            }
            assert!(
                plan_on(technique, EngineChoice::Auto, TransportChoice::Auto, everywhere, HostKind::Hardware)
                    .is_ok()
            );
        }
    }

    #[test]
    fn processes_need_memory_that_can_be_shared() {
        let backing = |choice| {
            plan_on(trap(), choice, TransportChoice::Auto, everywhere, HostKind::Software).unwrap().backing()
        };
        assert_eq!(backing(EngineChoice::Kvm), Backing::Anonymous);
        assert_eq!(backing(EngineChoice::Process), Backing::Memfd);
        assert_eq!(backing(EngineChoice::Auto), Backing::Memfd);
    }
}
