//! The loop, on an engine and a guest that do what the test says.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::engine::state::{BadState, Breakpoints, NoBreakpoints, VectorState};
use crate::ledger::{Cause, Ledger};
use crate::machine::kick::Kick;
use crate::machine::memory::{Backing, MachineMemory, Mfn};
use crate::machine::time::Clock;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::monitor::control::{Look, Postponed};
use crate::monitor::observe::Unobserved;
use crate::monitor::{Command, Control};
use crate::x86::registers::Regs;

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

fn clock() -> Clock {
    Clock::new(1_000_000, 0)
}

fn no_orders() -> Orders {
    Orders::new(Control::default(), clock())
}

fn waker() -> Waker {
    Waker::new(Arc::new(NoKick)).unwrap()
}

struct NoKick;

impl Kick for NoKick {
    fn kick(&self) {}
    fn arm(&self, _: u64) {}
}

impl Cpu for Kicks {
    fn catch_up(
        &mut self,
        space: &mut VcpuSpace,
        log: &TableLog,
        _: &MachineMemory,
    ) -> Result<(), &'static str> {
        space.caught_up(log);
        Ok(())
    }
    fn enter(&mut self, _: &mut Regs, _: &VcpuSpace, _: &MachineMemory) -> Exit {
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

impl Runner for Fake {
    fn regs(&self) -> &Regs {
        &self.regs
    }
    fn memory(&self) -> &MachineMemory {
        &self.memory
    }
    fn enter(&mut self, cpu: &mut dyn Cpu) -> Exit {
        cpu.catch_up_and_enter(&mut self.regs, &mut self.space, &self.log, &self.memory)
    }
    fn handle(&mut self, _: Exit) -> Handled {
        self.regs.rip += 1;
        (self.on_exit)();
        Cause::Kick.into()
    }
    fn prepare(&mut self) -> Next {
        self.next.pop().unwrap_or(Next::End)
    }
    fn about_to_run(&mut self, _: u64) {}
    fn woken(&mut self) {}
    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }
}

/// How often postponed work was done, and how often the guest was entered.
fn turns(next: Vec<Next>, under_way: bool, by: u64) -> (usize, u64) {
    let mut runner = Fake::new(next);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let control = Control::default();
    if under_way {
        control.guest_is_under_way();
    }
    let mut orders = Orders::new(control, clock());
    let work = Box::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    orders.postponed = Some(Postponed { work, by });
    run(&mut Kicks::default(), &mut runner, &waker(), &mut orders, &mut Unobserved);
    (calls.load(Ordering::Relaxed), runner.ledger.exits())
}

#[test]
fn the_ledger_is_shown_once_for_each_request() {
    let mut runner = Fake::new(vec![Next::Wait(Some(0)), Next::Run(None), Next::Run(None), Next::Run(None)]);
    let control = Control::default();
    control.send(Command::Peek);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (again, shown) = (control.clone(), seen.clone());
    let mut orders = Orders::new(control, clock());
    orders.on_peek = Some(Box::new(move |look| {
        shown.lock().unwrap().push(look.ledger.exits());
        if shown.lock().unwrap().len() < 3 {
            again.send(Command::Peek);
        }
    }));
    run(&mut Kicks::default(), &mut runner, &waker(), &mut orders, &mut Unobserved);
    assert_eq!(
        *seen.lock().unwrap(),
        [0, 0, 1],
        "before the first entry, and while each of two exits is open"
    );
    assert!(!orders.has_any() && runner.ledger.exits() == 3);
}

#[test]
fn a_stop_ends_the_loop_and_loses_no_exit() {
    for at_a_time in [false, true] {
        let mut runner = Fake::new(vec![Next::Run(None); 5]);
        let control = Control::default();
        let (stop, mut exits) = (control.clone(), 0);
        runner.on_exit = Box::new(move || {
            exits += 1;
            if exits == 2 && !at_a_time {
                stop.send(Command::Stop);
            }
        });
        let mut orders = Orders::new(control, clock());
        orders.stop_at = at_a_time.then_some(0);
        run(&mut Kicks::default(), &mut runner, &waker(), &mut orders, &mut Unobserved);
        assert_eq!(runner.ledger.exits(), if at_a_time { 0 } else { 2 });
    }
}

/// A guest that leaves ten times and is paused at its third exit; `then` is done while it stands still. Its ledger.
fn paused(then: impl FnOnce(&Control, &AtomicUsize) + Send) -> Ledger {
    let mut runner = Fake::new(vec![Next::Run(None); 10]);
    let (control, exits) = (Control::default(), Arc::new(AtomicUsize::new(0)));
    let (pause, counted) = (control.clone(), exits.clone());
    runner.on_exit = Box::new(move || {
        if counted.fetch_add(1, Ordering::SeqCst) == 2 {
            pause.send(Command::Pause);
        }
    });
    let waker = Arc::new(waker());
    control.attach([waker.clone() as Arc<dyn Kick>]);
    let mut orders = Orders::new(control.clone(), clock());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !control.is_paused() {
                std::thread::yield_now();
            }
            then(&control, &exits);
        });
        run(&mut Kicks::default(), &mut runner, &waker, &mut orders, &mut Unobserved);
    });
    assert!(!control.is_paused());
    runner.ledger
}

#[test]
fn a_paused_guest_is_not_entered_until_it_is_resumed() {
    let ledger = paused(|control, exits| {
        assert_eq!(exits.load(Ordering::SeqCst), 3);
        // It stands still although it is kicked.
        (0..100).for_each(|_| control.kick());
        assert!(control.is_paused());
        assert_eq!(exits.load(Ordering::SeqCst), 3);
        control.send(Command::Resume);
    });
    assert_eq!(ledger.exits(), 10);
}

#[test]
fn a_paused_guest_can_be_ended() {
    assert_eq!(paused(|control, _| control.send(Command::Stop)).exits(), 3);
}

#[test]
fn no_guest_pays_for_a_pause() {
    // A busy host may hold up the loop for longer than that; a guest that pays, pays every time.
    let free = (0..5).any(|_| {
        let clock = clock();
        let mut pause = 0;
        let ledger = paused(|control, _| {
            let start = clock.now();
            while clock.now() - start <= 10_000_000 + 2 * start {}
            pause = clock.now() - start;
            control.send(Command::Resume);
        });
        ledger.whole(0).handling_ns() < pause
    });
    assert!(free);
}

#[test]
fn no_engine_keeps_a_kick_that_came_before_a_wait_or_in_it() {
    let mut runner = Fake::new(vec![Next::Wait(Some(0))]);
    let mut engine = Kicks { waiting: true, to_come: 1, ..Kicks::default() };
    run(&mut engine, &mut runner, &waker(), &mut no_orders(), &mut Unobserved);
    assert_eq!((engine.told, engine.waiting, runner.ledger.exits()), (vec![true, true], false, 0));
}

/// What a guest was booked for leaving with `exit` twice, and how long its ledger was shown meanwhile, in ns.
fn paid_and_shown(exit: Exit) -> (u64, u64) {
    let clock = clock();
    let waker = Arc::new(waker());
    let taken = Arc::<AtomicU64>::default();
    let (before, after) = (clock.now(), taken.clone());
    let show = move |_: Look<'_>| {
        let start = clock.now();
        // Longer than all before it, and than what is left to do.
        while clock.now() - start <= 10_000_000 + 2 * (start - before) {}
        after.fetch_add(clock.now() - start, Ordering::Relaxed);
    };
    let mut runner = Fake::new(vec![Next::Run(None); 2]);
    let control = Control::default();
    control.attach([waker.clone() as Arc<dyn Kick>]);
    // The kick comes while the exit is handled: it is met on the way back into the guest.
    let asks = control.clone();
    runner.on_exit = Box::new(move || asks.send(Command::Peek));
    let mut engine = Kicks { exit: Some(exit), ..Kicks::default() };
    let mut orders = Orders::new(control, clock);
    orders.on_peek = Some(Box::new(show));
    run(&mut engine, &mut runner, &waker, &mut orders, &mut Unobserved);
    (runner.ledger.whole(0).handling_ns(), taken.load(Ordering::Relaxed))
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
fn postponed_work_is_done_once_and_in_time() {
    let busy = vec![Next::Run(None); 3];
    assert_eq!(turns(busy.clone(), false, u64::MAX), (0, 3), "a silent guest that is gone soon");
    assert_eq!(turns(busy.clone(), true, u64::MAX), (1, 3), "it is under way");
    assert_eq!(turns(busy, false, 0), (1, 3), "it ran for long");
    assert_eq!(turns(vec![Next::Wait(Some(0)); 2], false, u64::MAX), (1, 0), "it waits");
}

/// What an observer was told.
struct Told<const WANTS_PLACE: bool>(Vec<Seen>);

impl<const WANTS_PLACE: bool> Observer for Told<WANTS_PLACE> {
    const WANTS_PLACE: bool = WANTS_PLACE;

    fn see(&mut self, exit: &Seen) {
        self.0.push(*exit);
    }
}

#[test]
fn an_observer_is_told_of_every_exit_and_of_the_place_before_it_was_handled() {
    let next = || vec![Next::Run(None), Next::Wait(Some(0)), Next::Run(None), Next::Run(None)];
    let mut runner = Fake::new(next());
    runner.regs.rip = 0x1000;
    let mut told = Told::<true>(Vec::new());
    run(&mut Kicks::default(), &mut runner, &waker(), &mut no_orders(), &mut told);
    let places: Vec<u64> = told.0.iter().map(|seen| seen.place).collect();
    assert_eq!(places, [0x1000, 0x1001, 0x1002]);
    assert!(told.0.windows(2).all(|pair| pair[0].entered <= pair[1].left), "{:?}", told.0);
    let worked: u64 = told.0.iter().map(|seen| seen.worked).sum();
    assert_eq!(runner.ledger.whole(0).handling_ns(), worked, "as the ledger has it");

    let mut runner = Fake::new(next());
    runner.regs.rip = 0x1000;
    let mut told = Told::<false>(Vec::new());
    run(&mut Kicks::default(), &mut runner, &waker(), &mut no_orders(), &mut told);
    assert_eq!(told.0.iter().map(|seen| seen.place).collect::<Vec<_>>(), [0, 0, 0], "nobody asked");
}
