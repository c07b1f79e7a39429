//! That no kick is lost, whatever the order in which the two sides' steps take effect: a model of
//! [`Waker`](crate::monitor::waker::Waker) and of the loop around it, every state of which is visited.
//!
//! A step is one access to what both sides share. The accesses are sequentially consistent, but for the one that says
//! that the guest was left: others may see that at any time until the vCPU's next access that is. A kick is lost if the
//! vCPU can come to rest, in the guest or asleep, with every kicker done and something that it has not looked at. With
//! any of the [`Rules`] broken the model loses kicks, which shows that it would tell.

use std::collections::BTreeSet;

use crate::monitor::waker::place::{GUEST, HOST, LOOKS, SLEEPS};

/// What the vCPU's thread does next. First the loop, then [`Waker::wait`](crate::monitor::waker::Waker::wait), then the
/// way into the guest and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Vcpu {
    /// Takes the flag back.
    Hear,
    /// Takes what the engine has, after a wait.
    TakeAfterWait,
    /// Looks for reasons.
    Woken,
    /// Waits or enters, as the guest wants.
    Prepare,
    TakeBeforeWait,
    SayLooks,
    Look,
    SaySleeps,
    LookBeforeSleep,
    Asleep,
    SayHost,
    SayGuest,
    LookBeforeEntry,
    Guest,
    /// For a kick, of the engine or by the flag.
    LeaveForKick,
    /// For anything else.
    Leave,
    TakeAfterExit,
}

/// What a kicker has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kicker {
    Nothing,
    MadeNews,
    Rang,
    Saw(u8),
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    vcpu: Vcpu,
    kickers: [Kicker; 3],
    /// As the kickers see it.
    place: u8,
    /// That the guest was left is not visible yet.
    leaving: bool,
    rung: bool,
    bell: bool,
    /// The engine has a kick, whether its guest runs or not.
    engine: bool,
    /// The reasons that were raised, and how many of them the vCPU has seen.
    news: u8,
    seen: u8,
}

/// On which all rests.
#[derive(Clone, Copy)]
struct Rules {
    says_that_it_sleeps_before_it_looks: bool,
    says_that_it_enters_before_it_looks: bool,
    rings_before_it_asks_where: bool,
    hears_before_it_looks_for_reasons: bool,
}

const RULES: Rules = Rules {
    says_that_it_sleeps_before_it_looks: true,
    says_that_it_enters_before_it_looks: true,
    rings_before_it_asks_where: true,
    hears_before_it_looks_for_reasons: true,
};

impl State {
    const START: Self = Self {
        vcpu: Vcpu::Prepare,
        kickers: [Kicker::Nothing; 3],
        place: HOST,
        leaving: false,
        rung: false,
        bell: false,
        engine: false,
        news: 0,
        seen: 0,
    };

    fn to(self, vcpu: Vcpu) -> Self {
        Self { vcpu, ..self }
    }
    fn says(self, place: u8) -> Self {
        Self { place, leaving: false, ..self }
    }
    /// What was stored becomes visible.
    fn settled(self) -> Self {
        if self.leaving { self.says(HOST) } else { self }
    }
    fn takes(self) -> Self {
        Self { engine: false, ..self }
    }

    /// What one step of the vCPU's thread may make of it.
    fn vcpu_steps(self, rules: Rules) -> Vec<Self> {
        let hears_first = rules.hears_before_it_looks_for_reasons;
        let answer = if hears_first { Vcpu::Hear } else { Vcpu::Woken };
        let by_order = |rule, first, second| if rule { (first, second) } else { (second, first) };
        let (sleep_first, sleep_second) =
            by_order(rules.says_that_it_sleeps_before_it_looks, Vcpu::SaySleeps, Vcpu::LookBeforeSleep);
        let (entry_first, entry_second) =
            by_order(rules.says_that_it_enters_before_it_looks, Vcpu::SayGuest, Vcpu::LookBeforeEntry);
        let after = |step, second, end| if step == second { end } else { second };
        match self.vcpu {
            Vcpu::Hear => {
                let heard = Self { rung: false, ..self.settled() };
                // The loop takes the engine's kick after a wait, not after an entry that was none.
                let next = [Vcpu::TakeAfterWait, Vcpu::Woken].map(|next| heard.to(next));
                if hears_first { next.to_vec() } else { vec![heard.to(Vcpu::Prepare)] }
            }
            Vcpu::TakeAfterWait => vec![self.takes().to(Vcpu::Woken)],
            Vcpu::Woken => {
                vec![Self { seen: self.news, ..self }.to(if hears_first {
                    Vcpu::Prepare
                } else {
                    Vcpu::Hear
                })]
            }
            Vcpu::Prepare => vec![self.to(Vcpu::TakeBeforeWait), self.to(entry_first)],
            Vcpu::TakeBeforeWait => vec![self.takes().to(Vcpu::SayLooks)],
            Vcpu::SayLooks => vec![self.says(LOOKS).to(Vcpu::Look)],
            Vcpu::Look => vec![self.to(if self.rung { Vcpu::SayHost } else { sleep_first })],
            Vcpu::SaySleeps => {
                vec![self.says(SLEEPS).to(after(Vcpu::SaySleeps, sleep_second, Vcpu::Asleep))]
            }
            Vcpu::LookBeforeSleep if self.rung => vec![self.to(Vcpu::SayHost)],
            Vcpu::LookBeforeSleep => {
                vec![self.to(after(Vcpu::LookBeforeSleep, sleep_second, Vcpu::Asleep))]
            }
            Vcpu::Asleep if self.bell => vec![Self { bell: false, ..self }.to(Vcpu::SayHost)],
            Vcpu::Asleep => vec![],
            Vcpu::SayHost => vec![self.says(HOST).to(answer)],
            Vcpu::SayGuest => vec![self.says(GUEST).to(after(Vcpu::SayGuest, entry_second, Vcpu::Guest))],
            Vcpu::LookBeforeEntry if self.rung => vec![self.to(Vcpu::LeaveForKick)],
            Vcpu::LookBeforeEntry => {
                vec![self.to(after(Vcpu::LookBeforeEntry, entry_second, Vcpu::Guest))]
            }
            Vcpu::Guest if self.engine => vec![self.takes().to(Vcpu::LeaveForKick), self.to(Vcpu::Leave)],
            Vcpu::Guest => vec![self.to(Vcpu::Leave)],
            Vcpu::LeaveForKick => vec![Self { leaving: true, ..self }.to(answer)],
            Vcpu::Leave => vec![Self { leaving: true, ..self }.to(Vcpu::TakeAfterExit)],
            Vcpu::TakeAfterExit => vec![self.takes().to(if self.engine { answer } else { Vcpu::Prepare })],
        }
    }

    /// What the next step of a kicker makes of it.
    fn kicker_step(self, number: usize, rules: Rules) -> Option<Self> {
        let mut state = self;
        state.kickers[number] = match self.kickers[number] {
            Kicker::Nothing => {
                state.news += 1;
                Kicker::MadeNews
            }
            Kicker::MadeNews if !rules.rings_before_it_asks_where => Kicker::Saw(self.place),
            Kicker::MadeNews => {
                state.rung = true;
                Kicker::Rang
            }
            Kicker::Rang => Kicker::Saw(self.place),
            Kicker::Saw(place) => {
                state.rung |= !rules.rings_before_it_asks_where;
                state.bell |= place == SLEEPS;
                state.engine |= place == GUEST;
                Kicker::All
            }
            Kicker::All => return None,
        };
        Some(state)
    }

    /// A kick was lost: nothing will happen any more unless the guest makes it, and something was not looked at.
    fn is_lost(self) -> bool {
        let rests = self.vcpu == Vcpu::Asleep && !self.bell || self.vcpu == Vcpu::Guest && !self.engine;
        rests && self.kickers == [Kicker::All; 3] && self.seen < self.news
    }
}

/// How many states there are, and one in which a kick is lost.
fn explore(rules: Rules) -> (usize, Option<State>) {
    let (mut known, mut new) = (BTreeSet::from([State::START]), vec![State::START]);
    while let Some(state) = new.pop() {
        let kicked = (0..state.kickers.len()).filter_map(|number| state.kicker_step(number, rules));
        let next = state.vcpu_steps(rules).into_iter().chain(kicked).chain([state.settled()]);
        new.extend(next.filter(|state| known.insert(*state)));
    }
    (known.len(), known.into_iter().find(|state| state.is_lost()))
}

#[test]
fn no_order_of_steps_loses_a_kick() {
    let (states, lost) = explore(RULES);
    assert_eq!(lost, None);
    assert!(states > 1000, "a model of {states} states does not do what the two sides do");
}

#[test]
fn each_rule_is_needed() {
    let broken = [
        Rules { says_that_it_sleeps_before_it_looks: false, ..RULES },
        Rules { says_that_it_enters_before_it_looks: false, ..RULES },
        Rules { rings_before_it_asks_where: false, ..RULES },
        Rules { hears_before_it_looks_for_reasons: false, ..RULES },
    ];
    for (number, rules) in broken.into_iter().enumerate() {
        assert!(explore(rules).1.is_some(), "rule {number}");
    }
}
