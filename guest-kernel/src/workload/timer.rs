//! A thousand timer interrupts, idle in between, and the time from when each was due to its handler: of a timer that
//! ticks by itself, and of one that is set again each time.
#![forbid(unsafe_code)]

use crate::interrupts::timer;
use crate::kernel::Kernel;
use crate::machine::{Current, Machine};

use super::measure::{Failure, Outcome, Workload, measure};

const TIMERS: u64 = 1000;
/// Longer than the handling of a tick takes on a slow hypervisor: on one that is slower still, ticks come back to back.
const PERIOD_NS: u64 = 250_000;
const DELAY_NS: u64 = 100_000;

pub const TICKS: Workload = Workload {
    name: "timer-1000",
    what: "1000 ticks of a timer, 250 us apart",
    unit: "interrupt",
    run: |kernel| run(kernel, ticks),
};

pub const ONE_SHOT: Workload = Workload {
    name: "one-shot-1000",
    what: "1000 timers of 100 us, each set when the one before has expired",
    unit: "interrupt",
    run: |kernel| run(kernel, one_shots),
};

/// Waits for all of them, with interrupts off except while waiting.
fn run(kernel: &mut Kernel, all: fn() -> Latency) -> Result<Outcome, Failure> {
    let before = timer::count();
    Current::interrupts_off();
    let (latency, measured) = measure(&mut kernel.memory, |_| all());
    Current::interrupts_on();
    Failure::unless(timer::count() - before == TIMERS, "wrong-number-of-interrupts")?;
    let mut outcome = Outcome::new(TIMERS, measured);
    outcome.figures = &["latency-min-ns", "latency-mean-ns", "latency-max-ns"];
    outcome.values = [latency.min, latency.sum / TIMERS, latency.max];
    Ok(outcome)
}

struct Latency {
    min: u64,
    max: u64,
    sum: u64,
}

impl Latency {
    const NONE: Self = Self { min: u64::MAX, max: 0, sum: 0 };

    fn add(&mut self, ns: u64) {
        self.min = self.min.min(ns);
        self.max = self.max.max(ns);
        self.sum += ns;
    }
}

fn ticks() -> Latency {
    let mut latency = Latency::NONE;
    let before = timer::count();
    let start = Current::clock();
    let period = Current::tick(PERIOD_NS, TIMERS);
    for tick in 1..=TIMERS {
        while timer::count() < before + tick {
            Current::wait();
        }
        latency.add(timer::last().saturating_sub(start + tick * period));
    }
    latency
}

fn one_shots() -> Latency {
    let mut latency = Latency::NONE;
    for _ in 0..TIMERS {
        let count = timer::count();
        let armed = Current::clock();
        Current::arm_timer(armed + DELAY_NS);
        while timer::count() == count {
            Current::wait();
        }
        latency.add(timer::last().saturating_sub(armed + DELAY_NS));
    }
    latency
}
