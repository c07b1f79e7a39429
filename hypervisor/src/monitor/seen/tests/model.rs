//! That no virtual CPU can use a frame as what it was before, whatever the order in which the steps of several take
//! effect: a model of flush by restart (decision 26), every state of which is visited.
//!
//! There is one frame. A page-table entry may use it as memory that the guest writes, or as a table; a CPU in the guest
//! may walk that entry at any time, and caches what it finds. In the host each CPU removes the entry, or links the
//! frame again, in the same way or in the other; a CPU that comes too early demands that the others drop what they have
//! cached. A step is one access to what the CPUs share: the domain's lock, the entry, the log, the words of
//! [`Seen`](crate::monitor::seen::Seen). All of them are sequentially consistent, as they are there.
//!
//! The guest has broken out if a CPU is in the guest with the frame cached as something that it is not. With any of the
//! [`Rules`] broken it does, which shows that the model would tell.

use std::collections::HashSet;

/// Whether one CPU's catching up is enough for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coherence {
    OwnEntry,
    EveryCpu,
}

const CPUS: usize = 2;
/// So many removals are noted in the log at most. More show nothing new: each is a later position than the one before.
const END: u8 = 3;
const OUTSIDE: u8 = u8::MAX;

/// What the frame is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Use {
    Memory,
    Table,
}

const USES: [Use; 2] = [Use::Memory, Use::Table];

/// The parts of removing an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Removal {
    Store,
    Note,
    Lose,
}

/// What a CPU's thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Next {
    Guest,
    /// In the guest, but it has said that it is outside.
    GuestUnseen,
    SayOutside,
    Host,
    /// Under the lock.
    Remove(usize),
    Link(Use),
    /// It has found that it may.
    LinkUnchecked(Use),
    Demand,
    Wait,
    /// Under the lock.
    Know,
    CatchUp,
    NoteThatItCaughtUp,
    Say,
    LookForDemands,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cpu {
    next: Next,
    /// What it may still have cached of the frame; where one catches up for all, the first one's is everyone's.
    cached: [bool; 2],
    applied: u8,
    /// Its word.
    word: u8,
    /// What it has demanded.
    wanted: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    cpus: [Cpu; CPUS],
    lock: Option<usize>,
    entry: Option<Use>,
    /// The frame's type, and whether an entry holds it.
    kind: Use,
    held: bool,
    /// The log's position, that of the frame's last loss, what everyone knows, and what is demanded.
    end: u8,
    lost: u8,
    known: u8,
    demanded: u8,
}

/// On which all rests.
#[derive(Clone, Copy)]
struct Rules {
    policy: Coherence,
    /// How the machine really is.
    machine: Coherence,
    checks_before_a_change: bool,
    changes_under_the_lock_of_the_check: bool,
    loses_after_the_note: bool,
    flushes_when_it_catches_up: bool,
    catches_up_under_the_lock: bool,
    waits: bool,
    demands_before_it_waits: bool,
    says_before_it_looks: bool,
    looks: bool,
    leaves_before_it_says_so: bool,
}

const fn rules(policy: Coherence) -> Rules {
    Rules {
        policy,
        machine: policy,
        checks_before_a_change: true,
        changes_under_the_lock_of_the_check: true,
        loses_after_the_note: true,
        flushes_when_it_catches_up: true,
        catches_up_under_the_lock: true,
        waits: true,
        demands_before_it_waits: true,
        says_before_it_looks: true,
        looks: true,
        leaves_before_it_says_so: true,
    }
}

impl State {
    const START: Self = Self {
        cpus: [Cpu { next: Next::Host, cached: [false; 2], applied: 0, word: OUTSIDE, wanted: 0 }; CPUS],
        lock: None,
        entry: Some(Use::Memory),
        kind: Use::Memory,
        held: true,
        end: 0,
        lost: 0,
        known: 0,
        demanded: 0,
    };

    /// The same state, after a change to `cpu`'s part, which does `next` then.
    fn with(mut self, cpu: usize, next: Next, change: impl FnOnce(&mut Cpu)) -> Self {
        self.cpus[cpu].next = next;
        change(&mut self.cpus[cpu]);
        self
    }
    fn to(self, cpu: usize, next: Next) -> Self {
        self.with(cpu, next, |_| {})
    }
    fn locked(self, cpu: usize, next: Next) -> Option<Self> {
        let locked = Self { lock: Some(cpu), ..self }.to(cpu, next);
        Some(locked).filter(|_| self.lock.is_none())
    }
    fn unlocked(self) -> Self {
        Self { lock: None, ..self }
    }

    /// `next`, or the state in which the CPU has walked the entry before. It can do so in the guest, and from when it
    /// has caught up: that may be a way into the guest's address space and out again.
    fn while_it_walks(mut self, cpu: usize, next: Self, rules: Rules) -> Vec<Self> {
        let owner = if rules.machine == Coherence::OwnEntry { 0 } else { cpu };
        let Some(usage) = self.entry else { return vec![next] };
        self.cpus[owner].cached[usage as usize] = true;
        vec![self, next]
    }

    /// The caches after `cpu` has caught up.
    fn flushed(mut self, cpu: usize, rules: Rules) -> Self {
        let owner = if rules.machine == Coherence::OwnEntry { 0 } else { cpu };
        if rules.flushes_when_it_catches_up {
            self.cpus[owner].cached = [false; 2];
        }
        self
    }

    fn noted_that_it_caught_up(mut self, cpu: usize, rules: Rules) -> Self {
        if rules.policy == Coherence::OwnEntry {
            self.known = self.end;
        }
        let end = self.end;
        let enters = match rules.policy {
            Coherence::OwnEntry => Next::Guest,
            Coherence::EveryCpu if rules.says_before_it_looks => Next::Say,
            Coherence::EveryCpu => Next::LookForDemands,
        };
        self.with(cpu, enters, |cpu| cpu.applied = end)
    }

    fn removed(mut self, cpu: usize, part: usize, rules: Rules) -> Self {
        use Removal::{Lose, Note, Store};
        let order = if rules.loses_after_the_note { [Store, Note, Lose] } else { [Lose, Store, Note] };
        match order[part] {
            Store => self.entry = None,
            Note => self.end += 1,
            Lose => (self.held, self.lost) = (false, self.end),
        }
        if part + 1 < order.len() {
            self.to(cpu, Next::Remove(part + 1))
        } else {
            self.unlocked().to(cpu, Next::Host)
        }
    }

    fn linked(self, cpu: usize, kind: Use) -> Self {
        Self { kind, held: true, entry: Some(kind), ..self }.unlocked().to(cpu, Next::Host)
    }

    fn links(self, cpu: usize, kind: Use, rules: Rules) -> Self {
        let changes = self.kind != kind;
        if self.held {
            // Refused.
            self.unlocked().to(cpu, Next::Host)
        } else if changes && rules.checks_before_a_change && self.lost > self.known {
            let first = match rules.policy {
                // Its next entry is what it wants.
                Coherence::OwnEntry => Next::Host,
                Coherence::EveryCpu if rules.demands_before_it_waits => Next::Demand,
                Coherence::EveryCpu => Next::Wait,
            };
            let end = self.end;
            self.unlocked().with(cpu, first, |cpu| cpu.wanted = end)
        } else if changes && !rules.changes_under_the_lock_of_the_check {
            self.unlocked().to(cpu, Next::LinkUnchecked(kind))
        } else {
            self.linked(cpu, kind)
        }
    }

    fn nobody_is_behind(&self, cpu: usize) -> bool {
        let wanted = self.cpus[cpu].wanted;
        self.cpus.iter().enumerate().all(|(other, state)| other == cpu || state.word >= wanted)
    }

    /// What one step of `cpu` may make of it.
    fn steps(self, cpu: usize, rules: Rules) -> Vec<Self> {
        let Cpu { next, applied, wanted, .. } = self.cpus[cpu];
        let says = |next, word| self.with(cpu, next, |cpu| cpu.word = word);
        match next {
            Next::Guest => {
                let leaves = if rules.leaves_before_it_says_so {
                    self.to(cpu, Next::SayOutside)
                } else {
                    says(Next::GuestUnseen, OUTSIDE)
                };
                self.while_it_walks(cpu, leaves, rules)
            }
            Next::GuestUnseen => self.while_it_walks(cpu, self.to(cpu, Next::Host), rules),
            Next::SayOutside => vec![says(Next::Host, OUTSIDE)],
            Next::Host => {
                let room = self.entry.is_some() && self.end < END;
                let removes = room.then(|| self.locked(cpu, Next::Remove(0))).flatten();
                let links = USES.map(|kind| self.locked(cpu, Next::Link(kind)));
                let enters = if rules.catches_up_under_the_lock {
                    self.locked(cpu, Next::CatchUp)
                } else {
                    Some(self.to(cpu, Next::CatchUp))
                };
                [removes, enters].into_iter().chain(links).flatten().collect()
            }
            Next::Remove(part) => vec![self.removed(cpu, part, rules)],
            Next::Link(kind) => vec![self.links(cpu, kind, rules)],
            Next::LinkUnchecked(kind) => vec![self.linked(cpu, kind)],
            Next::Demand => {
                let then = if rules.demands_before_it_waits && rules.waits { Next::Wait } else { Next::Know };
                vec![Self { demanded: self.demanded.max(wanted), ..self }.to(cpu, then)]
            }
            Next::Wait if !self.nobody_is_behind(cpu) => vec![],
            Next::Wait => {
                vec![self.to(cpu, if rules.demands_before_it_waits { Next::Know } else { Next::Demand })]
            }
            Next::Know if self.lock.is_some() => vec![],
            Next::Know => vec![Self { known: self.known.max(wanted), ..self }.to(cpu, Next::Host)],
            Next::CatchUp if rules.catches_up_under_the_lock => {
                vec![self.flushed(cpu, rules).noted_that_it_caught_up(cpu, rules).unlocked()]
            }
            Next::CatchUp => vec![self.flushed(cpu, rules).to(cpu, Next::NoteThatItCaughtUp)],
            Next::NoteThatItCaughtUp => {
                self.while_it_walks(cpu, self.noted_that_it_caught_up(cpu, rules), rules)
            }
            Next::Say => {
                let looks = rules.says_before_it_looks && rules.looks;
                let next = if looks { Next::LookForDemands } else { Next::Guest };
                self.while_it_walks(cpu, says(next, applied), rules)
            }
            Next::LookForDemands if self.demanded > applied => vec![says(Next::Host, OUTSIDE)],
            Next::LookForDemands => {
                let next = if rules.says_before_it_looks { Next::Guest } else { Next::Say };
                self.while_it_walks(cpu, self.to(cpu, next), rules)
            }
        }
    }

    /// A CPU in the guest can use the frame as what it is not.
    fn is_broken(&self, rules: Rules) -> bool {
        self.cpus.iter().any(|cpu| {
            let cached = if rules.machine == Coherence::OwnEntry { self.cpus[0].cached } else { cpu.cached };
            let runs = matches!(cpu.next, Next::Guest | Next::GuestUnseen);
            runs && USES.iter().any(|usage| cached[*usage as usize] && *usage != self.kind)
        })
    }

    /// Nothing can happen any more.
    fn is_stuck(self, rules: Rules) -> bool {
        (0..CPUS).all(|cpu| self.steps(cpu, rules).is_empty())
    }
}

/// What the visit of all states found: how many there are, how many have the frame as a table after it was memory, and
/// the first that is broken.
struct Found {
    states: usize,
    changed: usize,
    broken: Option<State>,
}

fn explore(rules: Rules) -> Found {
    let (mut known, mut new) = (HashSet::from([State::START]), vec![State::START]);
    let mut found = Found { states: 0, changed: 0, broken: None };
    while let Some(state) = new.pop() {
        found.states += 1;
        found.changed += usize::from(state.kind == Use::Table);
        if state.is_broken(rules) {
            found.broken = Some(state);
            break;
        }
        assert!(!state.is_stuck(rules), "{state:?}");
        let next = (0..CPUS).flat_map(|cpu| state.steps(cpu, rules));
        new.extend(next.filter(|state| known.insert(*state)));
    }
    found
}

#[test]
fn no_order_of_steps_leaves_a_stale_use() {
    for policy in [Coherence::OwnEntry, Coherence::EveryCpu] {
        let found = explore(rules(policy));
        assert_eq!(found.broken, None, "{policy:?}");
        let (states, changed) = (found.states, found.changed);
        assert!(
            states > 1000 && changed > 100,
            "{policy:?}: a model of {states} states does not do what the CPUs do"
        );
    }
}

#[test]
fn each_rule_is_needed() {
    for policy in [Coherence::OwnEntry, Coherence::EveryCpu] {
        let rules = rules(policy);
        let broken = [
            Rules { checks_before_a_change: false, ..rules },
            Rules { changes_under_the_lock_of_the_check: false, ..rules },
            Rules { loses_after_the_note: false, ..rules },
            Rules { flushes_when_it_catches_up: false, ..rules },
            Rules { catches_up_under_the_lock: false, ..rules },
        ];
        for (number, rules) in broken.into_iter().enumerate() {
            assert!(explore(rules).broken.is_some(), "{policy:?}, rule {number}");
        }
    }
}

#[test]
fn each_rule_of_those_that_wait_for_each_other_is_needed() {
    let rules = rules(Coherence::EveryCpu);
    let broken = [
        Rules { waits: false, ..rules },
        Rules { demands_before_it_waits: false, ..rules },
        Rules { says_before_it_looks: false, ..rules },
        Rules { looks: false, ..rules },
        Rules { leaves_before_it_says_so: false, ..rules },
        Rules { policy: Coherence::OwnEntry, ..rules },
    ];
    for (number, rules) in broken.into_iter().enumerate() {
        assert!(explore(rules).broken.is_some(), "rule {number}");
    }
}
