//! Nanobenchmarks: one operation each, counted and timed.
//!
//! A full run lies between the marks: always the same number of repetitions, so that exits and times can be compared.
//! Then come 21 rounds of as many repetitions as a slow machine can do in about 100 ms, minus the loop around them, by
//! the time stamp counter. A rehearsal before both touches everything for the first time.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec;

use paravane_nano::{ALU_WORDS, Compute, Cycles, Data, repetitions_within, rounds};

use crate::exception::can_read;
use crate::kernel::{CurrentMmu, Kernel};
use crate::machine::{Current, Did, Machine, Primitive};

use super::measure::{Failure, Outcome, Workload, measure};

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
    let n = repetitions_within(full, measured.ns, full);
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

/// Repetitions of a rehearsal: enough for code that adapts to have adapted.
const REHEARSED: u64 = 64;

/// An operation of the machine.
pub fn primitive(kernel: &mut Kernel, primitive: &Primitive<CurrentMmu>) -> Result<Outcome, Failure> {
    Current::interrupts_off();
    let outcome = with_interrupts_off(kernel, primitive);
    Current::interrupts_on();
    outcome
}

fn with_interrupts_off(kernel: &mut Kernel, primitive: &Primitive<CurrentMmu>) -> Result<Outcome, Failure> {
    let arguments = (primitive.prepare)(&mut kernel.memory)?;
    let mut did = Did::nothing(arguments);
    primitive.run(&mut did, REHEARSED);
    let (full, measured) = measure(&mut kernel.memory, |_| primitive.run(&mut did, primitive.repetitions));
    let n = repetitions_within(full, measured.ns, full.max(primitive.most));
    let n = (n - n % primitive.grain).max(primitive.grain);
    let cycles = rounds(|| (primitive.empty)(n), || primitive.run(&mut did, n), |n| n);
    Current::interrupts_off();
    let gone = !primitive.unmapped || !can_read(arguments[2]);
    let right = (primitive.right)(&mut kernel.memory, &did);
    (primitive.finish)(&mut kernel.memory, arguments);
    Failure::unless(right, "wrong-result")?;
    Failure::unless(gone, "still-mapped")?;
    let mut outcome = Outcome::new(full, measured);
    timed(&mut outcome, cycles, n);
    Ok(outcome)
}

/// Adds the figures of the rounds.
fn timed(outcome: &mut Outcome, cycles: Cycles, repetitions: u64) {
    outcome.figures = &["cycles-x100-min", "cycles-x100-median", "repetitions"];
    outcome.values = [cycles.min, cycles.median, repetitions];
}
