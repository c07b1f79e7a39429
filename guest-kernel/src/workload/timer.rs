//! A thousand one-shot timers, one after the other, idle in between: the time from arming to the interrupt handler.
#![forbid(unsafe_code)]

use crate::interrupts::timer;
use crate::kernel::Kernel;
use crate::machine::{Current, Machine};

use super::measure::{Failure, Outcome, Workload, measure};

const TIMERS: u64 = 1000;
const DELAY_NS: u64 = 100_000;

pub const WORKLOAD: Workload =
    Workload { name: "timer-1000", what: "1000 timer interrupts, 100 us each", unit: "interrupt", run };

fn run(kernel: &mut Kernel) -> Result<Outcome, Failure> {
    let before = timer::count();
    Current::interrupts_off();
    let (latency, measured) = measure(&mut kernel.memory, |_| {
        let mut latency = Latency { min: u64::MAX, max: 0, sum: 0 };
        for _ in 0..TIMERS {
            latency.add(one());
        }
        latency
    });
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
    fn add(&mut self, ns: u64) {
        self.min = self.min.min(ns);
        self.max = self.max.max(ns);
        self.sum += ns;
    }
}

/// Arms one timer; returns the nanoseconds until its handler ran. Interrupts are off except while waiting.
fn one() -> u64 {
    let count = timer::count();
    let armed = Current::clock();
    Current::arm_timer(armed + DELAY_NS);
    while timer::count() == count {
        Current::wait();
    }
    timer::last().saturating_sub(armed)
}
