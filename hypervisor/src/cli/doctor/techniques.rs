//! Which techniques can be used here, and on which engines: told from the trials of the engines.

use serde::Serialize;

use super::trial::Trial;
use crate::technique::{TECHNIQUES, Technique};

/// A technique, and whether it can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usable {
    /// Its name.
    pub name: &'static str,
    /// The engines on which it ran a guest.
    pub engines: Vec<&'static str>,
    /// Why it cannot be used; nothing if it can.
    pub why_not: Option<String>,
}

/// Looks at every technique.
pub fn usable(trials: &[Trial]) -> Vec<Usable> {
    TECHNIQUES.iter().map(|technique| Usable::of(technique, trials)).collect()
}

impl Usable {
    fn of(technique: &Technique, trials: &[Trial]) -> Self {
        let ran = |trial: &&Trial| {
            trial.costs.iter().any(|cost| cost.technique == technique.name && cost.why_not.is_none())
        };
        let engines: Vec<_> = trials.iter().filter(ran).map(|trial| trial.name).collect();
        let why_not = match (technique.available)() {
            Err(why) => Some(why),
            Ok(()) => engines.is_empty().then(|| "no engine here ran a guest by it".to_owned()),
        };
        Self { name: technique.name, engines, why_not }
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::works;
    use super::*;

    #[test]
    fn a_technique_works_where_a_guest_ran_by_it() {
        // The trial is of a hypercall, which only `pv` makes.
        let usable = usable(&[Trial::failed("kvm", "no way".to_owned()), works("process", "process", 7e3)]);
        assert_eq!(usable.len(), TECHNIQUES.len());
        for one in usable {
            match one.name {
                "pv" => assert_eq!((one.engines, one.why_not), (vec!["process"], None)),
                _ => assert!(one.engines.is_empty() && one.why_not.is_some()),
            }
        }
    }
}
