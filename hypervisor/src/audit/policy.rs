//! Which findings an audit objects to.

use super::report::{Audit, ClassSummary};
use crate::x86::sensitive::{Class, Effect};

/// Which classes of instructions matter. Those that an image declares deliberate never do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    effects: Vec<Effect>,
    denied: Vec<Class>,
    allowed: Vec<Class>,
}

impl Policy {
    /// Objects to these effects, and to the classes in `denied`; never to those in `allowed`.
    pub const fn new(effects: Vec<Effect>, denied: Vec<Class>, allowed: Vec<Class>) -> Self {
        Self { effects, denied, allowed }
    }

    /// Whether an instruction of this class matters.
    pub fn denies(&self, class: Class) -> bool {
        let denied = self.effects.contains(&class.effect()) || self.denied.contains(&class);
        denied && !self.allowed.contains(&class)
    }

    /// How many of the instructions found of a class matter.
    pub fn matter(&self, found: &ClassSummary) -> u64 {
        if self.denies(found.class) { found.count.saturating_sub(found.deliberate) } else { 0 }
    }

    /// How many matter in all.
    pub fn total(&self, audit: &Audit) -> u64 {
        audit.classes.iter().map(|found| self.matter(found)).sum()
    }

    /// The classes that matter, by their names.
    pub fn denied(&self) -> Vec<&'static str> {
        Class::ALL.into_iter().filter(|c| self.denies(*c)).map(Class::id).collect()
    }
}

impl Default for Policy {
    /// The silent ones matter: the others at least fault.
    fn default() -> Self {
        Self::new(vec![Effect::Silent], Vec::new(), Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_what_matters_unless_said_otherwise() {
        let default = Policy::default();
        assert!(default.denies(Class::Flags) && !default.denies(Class::Halt));
        let other = Policy::new(vec![Effect::Silent], vec![Class::Halt], vec![Class::Identify]);
        assert!(other.denies(Class::Halt) && !other.denies(Class::Identify) && other.denies(Class::Flags));
        assert_eq!(other.denied(), ["flags", "store-tables", "read-segment", "halt"]);
    }

    #[test]
    fn what_is_deliberate_does_not_count() {
        let found = |class: Class, count, deliberate| ClassSummary {
            class,
            effect: class.effect(),
            name: class.name(),
            instead: crate::audit::advice::instead(class),
            count,
            uncertain: 0,
            deliberate,
            functions: 1,
        };
        let policy = Policy::default();
        assert_eq!(policy.matter(&found(Class::ReadSegment, 3, 2)), 1);
        assert_eq!(policy.matter(&found(Class::PortIo, 3, 0)), 0);
    }
}
