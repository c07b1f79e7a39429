//! The loop itself, and its accounting of time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::waker::Waker;
use crate::engine::{Cpu, Exit};
use crate::launch::Peek;
use crate::ledger::{Cause, Ledger, MARK_BEGIN};
use crate::machine::end::DomainEnd;
use crate::machine::kick::Kick;
use crate::machine::memory::MachineMemory;
use crate::machine::time::Clock;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::virtio::Slot;
use crate::x86::registers::Regs;

/// What the guest wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// To run, until this system time at the latest.
    Run(Option<u64>),
    /// To wait for an event, until this system time at the latest.
    Wait(Option<u64>),
    /// Nothing: its life is over.
    End,
}

/// What an exit turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handled {
    /// For the ledger.
    pub cause: Cause,
    /// The mark that it set, if it was one.
    pub mark: Option<u8>,
}

impl From<Cause> for Handled {
    fn from(cause: Cause) -> Self {
        Self { cause, mark: None }
    }
}

/// A domain of either kind, as the loop sees it.
pub trait Guest {
    /// What the engine needs to enter.
    fn context(&mut self) -> (&mut Regs, &mut VcpuSpace, &TableLog, &MachineMemory);
    /// Handles an exit.
    fn handle(&mut self, exit: Exit) -> Handled;
    /// Fires what is due, delivers what is pending, and says what to do next.
    fn prepare(&mut self) -> Next;
    /// The guest is about to run, and system time is `now`. Called before each entry: it must cost next to nothing.
    fn about_to_run(&mut self, now: u64);
    /// Somebody kicked: input may have come.
    fn woken(&mut self);
    /// Ends the domain from outside.
    fn interrupt(&mut self);
    /// The clock that deadlines are in.
    fn clock(&self) -> Clock;
    /// The books.
    fn ledger(&mut self) -> &mut Ledger;
    /// The books, when it has ended: a host without memory for new ones must not lose them.
    fn into_ledger(self: Box<Self>) -> Ledger;
    /// How its life ended.
    fn end(&self) -> DomainEnd;
    /// Its virtio devices, in order.
    fn slots(&self) -> Vec<&Slot>;
}

/// What comes from outside.
pub struct Outside {
    /// Ends the domain when set.
    pub stop: Arc<AtomicBool>,
    /// Ends the domain at this system time.
    pub deadline: Option<u64>,
    /// To be done once the guest is under way.
    pub put_off: Option<PutOff>,
    /// To be shown the ledger when it asks.
    pub peek: Option<Peek>,
}

impl Outside {
    /// Whether the domain is to end.
    fn wants_the_end(&self, clock: Clock) -> bool {
        self.stop.load(Ordering::Relaxed) || self.deadline.is_some_and(|t| clock.now() >= t)
    }

    /// Shows the ledger if somebody asked, which comes with a kick: only then is there anything to look for.
    /// How long that took, in nanoseconds.
    fn look(&mut self, guest: &mut dyn Guest, running_since: u64) -> u64 {
        let Some(Peek { wanted, show }) = &mut self.peek else { return 0 };
        if !wanted.swap(false, Ordering::Acquire) {
            return 0;
        }
        let clock = guest.clock();
        let before = clock.now();
        show(guest.ledger(), before.saturating_sub(running_since));
        clock.now().saturating_sub(before)
    }
}

/// What is put off until a guest is under way, see [`Config::once_running`](crate::launch::Config::once_running).
pub struct PutOff {
    /// Does it.
    pub call: Box<dyn FnOnce() + Send>,
    /// Set by the guest's first output.
    pub printed: Arc<OnceLock<u64>>,
    /// The system time at which it is done in any case.
    pub by: u64,
}

/// An exit that was handled and whose cost is not yet known.
struct Open {
    handled: Handled,
    since: u64,
    waited: u64,
}

/// Runs a domain to its end.
pub fn run(cpu: &mut dyn Cpu, guest: &mut dyn Guest, waker: &Waker, mut outside: Outside) -> DomainEnd {
    let clock = guest.clock();
    let start = clock.now();
    let mut armed = None;
    let mut open: Option<Open> = None;
    loop {
        if outside.wants_the_end(clock) {
            guest.interrupt();
        }
        let next = guest.prepare();
        let waits = matches!(next, Next::Wait(_));
        let due = |p: &mut PutOff| waits || p.printed.get().is_some() || p.by <= clock.now();
        if let Some(PutOff { call, .. }) = outside.put_off.take_if(due) {
            let before = clock.now();
            call();
            if let Some(open) = &mut open {
                open.waited += clock.now().saturating_sub(before);
            }
        }
        match next {
            Next::End => {
                settle(guest, open.take(), clock.now());
                return guest.end();
            }
            Next::Wait(until) => {
                let before = clock.now();
                let until = earliest(until, outside.deadline);
                // A kick that came too late for the exit before: the waker remembers it, too, and an engine may insist
                // on its being answered for as long as it is not.
                if cpu.take_kick() {
                    armed = None;
                }
                waker.wait(until.map(|t| Duration::from_nanos(t.saturating_sub(before))));
                // The engine's own timer ran, too: what it was for is looked for now, and it would only end the next entry.
                if cpu.take_kick() {
                    armed = None;
                }
                guest.woken();
                outside.look(guest, start);
                if let Some(open) = &mut open {
                    open.waited += clock.now().saturating_sub(before);
                }
            }
            Next::Run(until) => {
                let until = earliest(until, outside.deadline);
                let until = earliest(until, outside.put_off.as_ref().map(|p| p.by));
                let now = clock.now();
                if until != armed {
                    // A deadline that is now must still reach the guest: 0 would disarm.
                    waker.arm(until.map_or(0, |t| t.saturating_sub(now).max(1)));
                    armed = until;
                }
                if !waker.enter_guest() {
                    guest.woken();
                    let shown = outside.look(guest, start);
                    if let Some(open) = &mut open {
                        open.waited += shown;
                    }
                    continue;
                }
                settle(guest, open.take(), now);
                guest.about_to_run(now);
                let (regs, space, log, memory) = guest.context();
                let exit = cpu.enter(regs, space, log, memory);
                waker.leave_guest();
                let since = clock.now();
                let mut waited = 0;
                // A kick that the guest left for, or one that came when it was leaving anyway.
                if exit == Exit::Kick || cpu.take_kick() {
                    // The deadline may have been what kicked: it must be armed again if it stands.
                    armed = None;
                    waker.hear();
                    guest.woken();
                    waited = outside.look(guest, start);
                }
                open = Some(Open { handled: guest.handle(exit), since, waited });
            }
        }
    }
}

fn earliest(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// Books a handled exit, now that the guest is about to run again.
fn settle(guest: &mut dyn Guest, open: Option<Open>, now: u64) {
    let Some(Open { handled, since, waited }) = open else { return };
    let ledger = guest.ledger();
    ledger.record(handled.cause, now.saturating_sub(since).saturating_sub(waited));
    if let Some(mark) = handled.mark {
        // A region begins as the guest goes on and ends as it stopped: handling a mark is not measured.
        ledger.mark(mark, if mark == MARK_BEGIN { now } else { since });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize};

    use super::*;
    use crate::engine::state::{BadState, Breakpoints, NoBreakpoints, VectorState};
    use crate::machine::memory::{Backing, Mfn};

    /// A vCPU that only ever does what the test says, and an engine on which nothing but that happens.
    struct Fake {
        next: Vec<Next>,
        regs: Regs,
        space: VcpuSpace,
        log: TableLog,
        memory: MachineMemory,
        ledger: Ledger,
        on_exit: Box<dyn FnMut()>,
    }

    impl Fake {
        /// One that wants what is in `next`, the last first.
        fn new(next: Vec<Next>) -> Self {
            let memory = MachineMemory::new(0, 1, Backing::Anonymous).unwrap();
            let (regs, log, ledger) = (Regs::default(), TableLog::default(), Ledger::new());
            let space = VcpuSpace::new(Mfn(0), &log);
            Self { next, regs, space, log, memory, ledger, on_exit: Box::new(|| {}) }
        }
    }

    #[derive(Default)]
    struct Kicks {
        /// What an entry ends with, if not with a kick.
        exit: Option<Exit>,
        /// A kick waits for an entry.
        waiting: bool,
        /// How many more will come, each when the one before was taken.
        to_come: u32,
        /// What those who asked for a kick were told.
        told: Vec<bool>,
    }

    impl Outside {
        fn nothing() -> Self {
            Self { stop: Arc::default(), deadline: None, put_off: None, peek: None }
        }
    }
    struct NoKick;

    impl Kick for NoKick {
        fn kick(&self) {}
        fn arm(&self, _: u64) {}
    }

    impl Cpu for Kicks {
        fn enter(&mut self, _: &mut Regs, _: &mut VcpuSpace, _: &TableLog, _: &MachineMemory) -> Exit {
            self.exit.unwrap_or(Exit::Kick)
        }
        fn save(&mut self) -> Result<VectorState, BadState> {
            Ok(VectorState::reset())
        }
        fn load(&mut self, _: &VectorState) -> Result<(), BadState> {
            Ok(())
        }
        fn debug(&mut self, _: &Breakpoints) -> Result<(), NoBreakpoints> {
            Ok(())
        }
        fn kicker(&self) -> Arc<dyn Kick> {
            Arc::new(NoKick)
        }
        fn take_kick(&mut self) -> bool {
            let taken = std::mem::replace(&mut self.waiting, self.to_come > 0);
            self.to_come = self.to_come.saturating_sub(1);
            self.told.push(taken);
            taken
        }
    }

    impl Guest for Fake {
        fn context(&mut self) -> (&mut Regs, &mut VcpuSpace, &TableLog, &MachineMemory) {
            (&mut self.regs, &mut self.space, &self.log, &self.memory)
        }
        fn handle(&mut self, _: Exit) -> Handled {
            (self.on_exit)();
            Cause::Kick.into()
        }
        fn prepare(&mut self) -> Next {
            self.next.pop().unwrap_or(Next::End)
        }
        fn about_to_run(&mut self, _: u64) {}
        fn woken(&mut self) {}
        fn interrupt(&mut self) {}
        fn clock(&self) -> Clock {
            Clock::new(1_000_000, 0)
        }
        fn ledger(&mut self) -> &mut Ledger {
            &mut self.ledger
        }
        fn into_ledger(self: Box<Self>) -> Ledger {
            self.ledger
        }
        fn end(&self) -> DomainEnd {
            DomainEnd::PowerOff
        }
        fn slots(&self) -> Vec<&Slot> {
            Vec::new()
        }
    }

    /// How often what was put off was done, and how often the guest was entered.
    fn turns(next: Vec<Next>, printed: bool, by: u64) -> (usize, u64) {
        let mut guest = Fake::new(next);
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let put_off = PutOff {
            call: Box::new(move || {
                counted.fetch_add(1, Ordering::Relaxed);
            }),
            printed: Arc::new(if printed { OnceLock::from(0) } else { OnceLock::new() }),
            by,
        };
        let waker = Waker::new(Arc::new(NoKick)).unwrap();
        let outside = Outside { put_off: Some(put_off), ..Outside::nothing() };
        run(&mut Kicks::default(), &mut guest, &waker, outside);
        (calls.load(Ordering::Relaxed), guest.ledger.exits())
    }

    #[test]
    fn the_ledger_is_shown_once_for_each_request() {
        let mut guest =
            Fake::new(vec![Next::Wait(Some(0)), Next::Run(None), Next::Run(None), Next::Run(None)]);
        let wanted = Arc::new(AtomicBool::new(true));
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (again, shown) = (wanted.clone(), seen.clone());
        let show = move |ledger: &Ledger, _| {
            shown.lock().unwrap().push(ledger.exits());
            again.store(shown.lock().unwrap().len() < 2, Ordering::Relaxed);
        };
        let peek = Some(Peek { wanted: wanted.clone(), show: Box::new(show) });
        let outside = Outside { peek, ..Outside::nothing() };
        run(&mut Kicks::default(), &mut guest, &Waker::new(Arc::new(NoKick)).unwrap(), outside);
        assert_eq!(*seen.lock().unwrap(), [0, 1], "at the first two kicks of three");
        assert!(!wanted.load(Ordering::Relaxed) && guest.ledger.exits() == 3);
    }

    #[test]
    fn no_engine_keeps_a_kick_that_came_before_a_wait_or_in_it() {
        let mut guest = Fake::new(vec![Next::Wait(Some(0))]);
        let mut engine = Kicks { waiting: true, to_come: 1, ..Kicks::default() };
        run(&mut engine, &mut guest, &Waker::new(Arc::new(NoKick)).unwrap(), Outside::nothing());
        assert_eq!((engine.told, engine.waiting, guest.ledger.exits()), (vec![true, true], false, 0));
    }

    /// What a guest was booked for leaving with `exit` twice, and how long its ledger was shown meanwhile, in ns.
    fn paid_and_shown(exit: Exit) -> (u64, u64) {
        let clock = Clock::new(1_000_000, 0);
        let waker = Arc::new(Waker::new(Arc::new(NoKick)).unwrap());
        let (wanted, taken) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (before, after) = (clock.now(), taken.clone());
        let show = move |_: &Ledger, _| {
            let start = clock.now();
            // Longer than all before it, and than what is left to do.
            while clock.now() - start <= 10_000_000 + 2 * (start - before) {}
            after.fetch_add(clock.now() - start, Ordering::Relaxed);
        };
        let mut guest = Fake::new(vec![Next::Run(None); 2]);
        // The kick comes while the exit is handled: it is met on the way back into the guest.
        let (asks, kicks) = (wanted.clone(), waker.clone());
        guest.on_exit = Box::new(move || {
            asks.store(true, Ordering::Relaxed);
            kicks.kick();
        });
        let peek = Some(Peek { wanted, show: Box::new(show) });
        let mut engine = Kicks { exit: Some(exit), ..Kicks::default() };
        run(&mut engine, &mut guest, &waker, Outside { peek, ..Outside::nothing() });
        (guest.ledger.whole(0).handling_ns(), taken.load(Ordering::Relaxed))
    }

    #[test]
    fn no_guest_pays_for_the_time_in_which_its_ledger_is_shown() {
        for exit in [Exit::Kick, Exit::Syscall] {
            // A busy host may hold up what is left to do for longer than that; a guest that pays, pays every time.
            let free = (0..5).any(|_| {
                let (paid, shown) = paid_and_shown(exit);
                assert!(shown > 0);
                paid < shown
            });
            assert!(free, "{exit:?}");
        }
    }

    #[test]
    fn what_is_put_off_is_done_once_and_in_time() {
        let busy = vec![Next::Run(None); 3];
        assert_eq!(turns(busy.clone(), false, u64::MAX), (0, 3), "a silent guest that is gone soon");
        assert_eq!(turns(busy.clone(), true, u64::MAX), (1, 3), "it printed");
        assert_eq!(turns(busy, false, 0), (1, 3), "it ran for long");
        assert_eq!(turns(vec![Next::Wait(Some(0)); 2], false, u64::MAX), (1, 0), "it waits");
    }
}
