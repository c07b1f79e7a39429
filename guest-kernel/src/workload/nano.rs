//! Nanobenchmarks: one operation each, counted and timed.
//!
//! A full run lies between the marks: always the same number of repetitions, so that exits and times can be compared.
//! Then come 21 rounds of as many repetitions as a slow machine can do in about 100 ms, minus the loop around them, by
//! the time stamp counter. A rehearsal before both touches everything for the first time.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec;

use paravane_nano::{ALU_WORDS, Compute, Cycles, Data, repetitions_within, rounds};

use crate::kernel::Kernel;
use crate::machine::{Current, Machine};

use super::measure::{Failure, Outcome, Workload, measure};

/// The most repetitions of a round.
const MOST: u64 = 10_000;

macro_rules! workload {
    ($compute:ident) => {
        Workload {
            name: paravane_nano::$compute.name,
            what: paravane_nano::$compute.what,
            unit: paravane_nano::$compute.unit,
            run: |kernel| compute(kernel, &paravane_nano::$compute),
        }
    };
}
pub const CALLRET: Workload = workload!(CALLRET);
pub const INDIRECT_1: Workload = workload!(INDIRECT_1);
pub const INDIRECT_4: Workload = workload!(INDIRECT_4);
pub const INDIRECT_16: Workload = workload!(INDIRECT_16);
pub const FIB: Workload = workload!(FIB);
pub const ALU: Workload = workload!(ALU);

fn compute(kernel: &mut Kernel, compute: &Compute) -> Result<Outcome, Failure> {
    let words: Result<Box<[u64; ALU_WORDS]>, _> = vec![0; ALU_WORDS].into_boxed_slice().try_into();
    let mut words = words.map_err(|_| Failure("too-little-memory"))?;
    let mut data = Data::new(&mut words);
    let full = compute.repetitions;
    Failure::unless(compute.run(&mut data, 1).done().right, "wrong-result")?;
    Current::interrupts_off();
    let (run, measured) = measure(&mut kernel.memory, |_| compute.run(&mut data, full));
    let n = repetitions_within(full, measured.ns, full.max(MOST));
    let (mut right, mut repetitions) = (run.done().right, 0);
    let cycles = rounds(
        || compute.empty(n),
        || compute.run(&mut data, n),
        |run| {
            repetitions = run.repetitions();
            right &= run.done().right;
            repetitions
        },
    );
    Current::interrupts_on();
    Failure::unless(right, "wrong-result")?;
    let mut outcome = Outcome::new(full, measured);
    timed(&mut outcome, cycles, repetitions);
    Ok(outcome)
}

/// Adds the figures of the rounds.
fn timed(outcome: &mut Outcome, cycles: Cycles, repetitions: u64) {
    outcome.figures = &["cycles-x100-min", "cycles-x100-median", "repetitions"];
    outcome.values = [cycles.min, cycles.median, repetitions];
}
