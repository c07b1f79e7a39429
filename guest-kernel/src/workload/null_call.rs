//! Make the cheapest request that only the machine can answer, and check the answer.
#![forbid(unsafe_code)]

use crate::kernel::{Kernel, Memory};
use crate::machine::{Current, Machine};

use super::measure::{Failure, Outcome, Workload, measure};

const CALLS: u64 = 1000;

pub const WORKLOAD: Workload = Workload {
    name: "null-call",
    what: "make the cheapest request to the machine, 1000 times",
    unit: "call",
    run,
};

fn run(kernel: &mut Kernel) -> Result<Outcome, Failure> {
    let calls = |_: &mut Memory| (0..CALLS).filter(|_| Current::null_call()).count() as u64;
    let (right, measured) = measure(&mut kernel.memory, calls);
    Failure::unless(right == CALLS, "wrong-answer")?;
    Ok(Outcome::new(CALLS, measured))
}
