//! Which techniques can be used here, and on which engines: told from the trials of the engines, and from a boot of each
//! technique that no trial was by.

use std::time::Duration;

use serde::Serialize;

use super::trial::Trial;
use crate::compare::{Machine, Workload, measure};
use crate::launch::{self, EngineChoice, TransportChoice};
use crate::technique::{EngineNeed, TECHNIQUES, Technique};

/// A technique, and whether it can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usable {
    /// Its name.
    pub name: &'static str,
    /// The engines on which it ran a guest; none if it needs none.
    pub engines: Vec<&'static str>,
    /// Why it cannot be used; nothing if it can.
    pub why_not: Option<String>,
}

/// How long one boot may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks at every technique.
pub fn usable(trials: &[Trial]) -> Vec<Usable> {
    TECHNIQUES.iter().map(|technique| Usable::of(technique, trials, boot)).collect()
}

/// Runs the guest that the technique is for, briefly.
fn boot(technique: &'static Technique, engine: EngineChoice) -> Result<(), String> {
    let machine =
        Machine { mem_bytes: 64 << 20, engine, transport: TransportChoice::Auto, deadline: PATIENCE };
    let workload = Workload::named("null-call").ok_or("no workload null-call; this is a bug in Paravane")?;
    measure(technique, workload, &machine, &mut launch::run).map(drop).map_err(|failure| failure.to_string())
}

impl Usable {
    fn of(
        technique: &'static Technique,
        trials: &[Trial],
        boot: impl Fn(&'static Technique, EngineChoice) -> Result<(), String>,
    ) -> Self {
        let name = technique.name;
        let unusable = |why| Self { name, engines: Vec::new(), why_not: Some(why) };
        if let Err(why) = (technique.available)() {
            return unusable(why);
        }
        let wanted = match technique.engine {
            EngineNeed::Nothing => {
                let why_not = boot(technique, EngineChoice::Auto).err();
                return Self { name, engines: Vec::new(), why_not };
            }
            EngineNeed::Deprivileged => [EngineChoice::Kvm, EngineChoice::Process].as_slice(),
            EngineNeed::Ring0(_) => &[EngineChoice::Kvm],
        };
        let mut engines = Vec::new();
        let mut last = None;
        for engine in wanted {
            let Some(trial) = trials.iter().find(|trial| trial.name == engine.name()) else { continue };
            let tried = trial.costs.iter().find(|cost| cost.technique == name);
            let failed = match (tried, &trial.why_not) {
                (Some(cost), _) => cost.why_not.clone(),
                (None, Some(why)) if technique.engine == EngineNeed::Deprivileged => Some(why.clone()),
                (None, _) => boot(technique, *engine).err(),
            };
            match failed {
                None => engines.push(engine.name()),
                Some(why) => last = Some(why),
            }
        }
        match (engines.is_empty(), last) {
            (false, _) => Self { name, engines, why_not: None },
            (true, Some(why)) => unusable(why),
            (true, None) => unusable("no engine here ran a guest by it".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::works;
    use super::*;

    fn by(name: &str) -> &'static Technique {
        Technique::named(name).unwrap()
    }

    fn fails(_: &'static Technique, _: EngineChoice) -> Result<(), String> {
        Err("it did not".to_owned())
    }

    /// The trial is of a hypercall, which only `pv` makes; for the others a guest is booted.
    #[test]
    fn a_technique_works_where_a_guest_ran_by_it() {
        let trials = [Trial::failed("kvm", "no way".to_owned()), works("process", "process", 7e3)];
        let pv = Usable::of(by("pv"), &trials, fails);
        assert_eq!((pv.engines, pv.why_not), (vec!["process"], None));
        let trap = Usable::of(by("trap"), &trials, |_, _| Ok(()));
        assert_eq!((trap.engines, trap.why_not), (vec!["process"], None));
        let trap = Usable::of(by("trap"), &trials, fails);
        assert_eq!((trap.engines.len(), trap.why_not.as_deref()), (0, Some("it did not")));
        let none = Usable::of(by("trap"), &trials[..1], fails);
        assert_eq!(none.why_not.as_deref(), Some("no way"));
    }

    /// With what it lacks, or where it runs.
    #[test]
    fn what_needs_hardware_says_so() {
        let trials = [works("kvm", "kvm", 7e3), works("process", "process", 7e3)];
        let hvm = Usable::of(by("hvm"), &trials, |_, _| Ok(()));
        match (by("hvm").available)() {
            Ok(()) => assert_eq!((hvm.engines, hvm.why_not), (vec!["kvm"], None)),
            Err(why) => assert_eq!((hvm.engines.len(), hvm.why_not), (0, Some(why))),
        }
    }
}
