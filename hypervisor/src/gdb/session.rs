//! What the debugger's thread and the threads of the virtual CPUs share.
//!
//! A virtual CPU has an [`Order`]: to run, to stand, or to step. One that stands takes errands: the debugger's thread
//! [asks](Session::ask) for something to be done on the virtual CPU's own thread, and waits for the answer. All of them
//! stand or none does, but for those that a step of another one leaves standing.
//!
//! A virtual CPU that stands sleeps as one does that waits for an event, so that whatever ends that wait (a kick, the
//! run's time limit, its end) ends this one: no lock is held meanwhile, and nothing here can hang.

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::breakpoints::Breakpoints;
use super::debugged::Standing;
use super::hardware::{Hardware, Watched};
use crate::host::poll;
use crate::machine::end::DomainEnd;
use crate::machine::kick::Kick;

/// What a virtual CPU is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// What its guest does.
    Run,
    /// Nothing, but errands.
    Stand,
    /// One instruction.
    Step,
}

impl Order {
    const fn code(self) -> u8 {
        match self {
            Self::Run => 0,
            Self::Stand => 1,
            Self::Step => 2,
        }
    }

    const fn of(code: u8) -> Self {
        match code {
            0 => Self::Run,
            2 => Self::Step,
            _ => Self::Stand,
        }
    }
}

/// Why the domain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It has not begun, or the debugger came while it ran.
    Attached,
    /// The debugger's user pressed Ctrl-C.
    Interrupted,
    /// It met an INT3 of ours.
    Breakpoint,
    /// It met one in a debug register.
    Watched(Watched),
    /// It has done its step.
    Stepped,
    /// It would end, for this reason.
    Ends(String),
}

/// Which virtual CPU made the domain stand, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub vcpu: usize,
    pub why: Why,
}

/// Something to be done by a virtual CPU that stands.
pub(super) type Errand = Box<dyn FnOnce(&mut Standing<'_>) + Send>;

/// A virtual CPU, as far as others reach it.
struct Seat {
    order: AtomicU8,
    kick: Arc<dyn Kick>,
    desk: Mutex<Desk>,
}

#[derive(Default)]
struct Desk {
    stands: bool,
    errands: Vec<Errand>,
    /// A step goes on for as long as RIP is here.
    within: Option<Range<u64>>,
}

#[derive(Default)]
struct State {
    stop: Option<Stop>,
    end: Option<DomainEnd>,
    breakpoints: Breakpoints,
    hardware: Hardware,
}

/// What the threads share.
pub struct Session {
    seats: Box<[Seat]>,
    state: Mutex<State>,
    attached: AtomicBool,
    /// Whether there is anything in debug registers.
    watches: AtomicBool,
    /// Rings in the debugger's thread: the domain stands, or has ended.
    pub(super) bell: EventFd,
}

/// Nobody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest has ended")]
pub(super) struct Over;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Of virtual CPUs that are woken by these, from number 0. They stand before their first instruction.
    ///
    /// # Errors
    /// When the host has no event descriptor left.
    pub fn new(kicks: impl IntoIterator<Item = Arc<dyn Kick>>) -> std::io::Result<Arc<Self>> {
        let stand = Order::Stand.code();
        let seat = |kick| Seat { order: AtomicU8::new(stand), kick, desk: Mutex::default() };
        let state = State { stop: Some(Stop { vcpu: 0, why: Why::Attached }), ..State::default() };
        Ok(Arc::new(Self {
            seats: kicks.into_iter().map(seat).collect(),
            state: Mutex::new(state),
            attached: AtomicBool::new(true),
            watches: AtomicBool::new(false),
            bell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        }))
    }

    /// How many virtual CPUs there are.
    pub(super) fn vcpus(&self) -> usize {
        self.seats.len()
    }

    /// What the virtual CPU is to do.
    pub(super) fn order(&self, vcpu: usize) -> Order {
        self.seats.get(vcpu).map_or(Order::Run, |seat| Order::of(seat.order.load(Ordering::Acquire)))
    }

    /// Where its step goes on.
    pub(super) fn within(&self, vcpu: usize) -> Option<Range<u64>> {
        self.seats.get(vcpu).and_then(|seat| lock(&seat.desk).within.clone())
    }

    /// Whether a virtual CPU that is to stand has anything to do before it sleeps.
    pub(super) fn is_wanted(&self, vcpu: usize) -> bool {
        self.seats.get(vcpu).is_some_and(|seat| {
            let desk = lock(&seat.desk);
            !desk.stands || !desk.errands.is_empty()
        })
    }

    /// The virtual CPU stands, and does what it was asked for.
    pub(super) fn serve(&self, vcpu: usize, standing: &mut Standing<'_>) {
        let Some(seat) = self.seats.get(vcpu) else { return };
        let errands = {
            let mut desk = lock(&seat.desk);
            // Under the lock: it may have been told to go on meanwhile.
            if self.order(vcpu) != Order::Stand {
                return;
            }
            desk.stands = true;
            std::mem::take(&mut desk.errands)
        };
        for errand in errands {
            errand(standing);
        }
        if self.all_stand() {
            self.ring();
        }
    }

    fn ring(&self) {
        // It cannot overflow: the debugger's thread empties it.
        let _ = self.bell.write(1);
    }

    /// The domain is to stand, because of this virtual CPU. Only the first reason counts. Does nothing where no
    /// debugger is there.
    pub(super) fn stop(&self, vcpu: usize, why: Why) {
        if !self.attached.load(Ordering::Acquire) {
            return;
        }
        lock(&self.state).stop.get_or_insert(Stop { vcpu, why });
        for seat in &self.seats {
            seat.order.store(Order::Stand.code(), Ordering::Release);
        }
        self.seats.iter().for_each(|seat| seat.kick.kick());
    }

    /// Whether a debugger is there.
    pub(super) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }

    /// A debugger is there: the domain is to stand, if it does not yet.
    pub(super) fn attach(&self) {
        self.attached.store(true, Ordering::Release);
        if lock(&self.state).stop.is_none() {
            self.stop(0, Why::Attached);
        }
    }

    /// Has the domain stand, and waits until it does or has ended.
    pub(super) fn stand_still(&self) {
        self.attach();
        while self.standing().is_none() && self.end().is_none() {
            // Neither can fail: it is a descriptor of our own.
            let _ = poll::wait(&[self.bell.as_raw_fd()]);
            let _ = self.bell.read();
        }
    }

    /// It has gone.
    pub(super) fn detach(&self) {
        self.attached.store(false, Ordering::Release);
        let orders = vec![(Order::Run, None); self.vcpus()];
        self.resume(orders);
    }

    fn all_stand(&self) -> bool {
        self.seats.iter().all(|seat| lock(&seat.desk).stands)
    }

    /// Why the domain stands, once all of its virtual CPUs do.
    pub(super) fn standing(&self) -> Option<Stop> {
        lock(&self.state).stop.clone().filter(|_| self.all_stand())
    }

    /// How the domain ended.
    pub(super) fn end(&self) -> Option<DomainEnd> {
        lock(&self.state).end.clone()
    }

    /// The virtual CPUs go on, each as its order says; those that have none stay.
    pub(super) fn resume(&self, orders: Vec<(Order, Option<Range<u64>>)>) {
        lock(&self.state).stop = None;
        for (seat, (order, within)) in self.seats.iter().zip(orders) {
            let mut desk = lock(&seat.desk);
            desk.within = within;
            desk.stands = order == Order::Stand;
            seat.order.store(order.code(), Ordering::Release);
        }
        self.seats.iter().for_each(|seat| seat.kick.kick());
    }

    /// The domain's life is over: whoever asks has no answer from now on.
    pub(super) fn finish(&self, end: &DomainEnd) {
        lock(&self.state).end = Some(end.clone());
        for seat in &self.seats {
            lock(&seat.desk).errands.clear();
        }
        self.ring();
    }

    /// Has a virtual CPU that stands do something, and waits for what comes of it.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        vcpu: usize,
        errand: impl FnOnce(&mut Standing<'_>) -> T + Send + 'static,
    ) -> Result<T, Over> {
        let seat = self.seats.get(vcpu).ok_or(Over)?;
        let (answer, answered) = mpsc::channel();
        {
            let state = lock(&self.state);
            if state.end.is_some() {
                return Err(Over);
            }
            let errand: Errand = Box::new(move |standing| drop(answer.send(errand(standing))));
            lock(&seat.desk).errands.push(errand);
        }
        seat.kick.kick();
        answered.recv().map_err(|_| Over)
    }

    /// What is in debug registers; `None` for nothing.
    pub(super) fn hardware(&self) -> Option<Hardware> {
        self.watches.load(Ordering::Acquire).then(|| lock(&self.state).hardware)
    }

    /// Notes what was put there.
    pub(super) fn set_hardware(&self, hardware: Hardware) {
        lock(&self.state).hardware = hardware;
        self.watches.store(!hardware.is_empty(), Ordering::Release);
    }

    /// The INT3s in the guest's memory.
    pub(super) fn with_breakpoints<T>(&self, f: impl FnOnce(&mut Breakpoints) -> T) -> T {
        f(&mut lock(&self.state).breakpoints)
    }
}
