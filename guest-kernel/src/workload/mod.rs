//! Workloads, by which the two machines are compared.
//!
//! Each has three parts: set-up, a measured body between two marks, and verification. Only the body is measured, and
//! its result is verified by other means than the body used. Workloads are deterministic: the same operations in the
//! same order on every machine and in every run. No workload knows its machine. A new one is a file here and a line
//! in [`ALL`]; an operation of the machine for [`nano`] is a line in its layer's list.

use crate::device::DeviceError;
use crate::kernel::{CurrentMmu, Kernel};
use crate::machine::{Current, Machine};
use crate::memory::paging::Mmu;
use crate::println;

mod address_space;
mod block;
mod console;
mod map;
mod measure;
mod nano;
mod net;
mod null_call;
mod scatter;
mod timer;

use measure::{Failure, Measured, Outcome, Workload};

/// All workloads.
const ALL: &[Workload] = &[
    null_call::WORKLOAD,
    console::WORKLOAD,
    console::VIRTIO,
    map::SMALL,
    map::LARGE,
    address_space::WORKLOAD,
    timer::TICKS,
    timer::ONE_SHOT,
    block::SETUP,
    block::READ_ONE,
    block::READ_MANY,
    block::READ_LARGE,
    net::SETUP,
    net::SEND_SMALL,
    net::SEND_BIG,
    net::FLOOD_SMALL,
    net::FLOOD_BIG,
    net::RECEIVE_SMALL,
    net::RECEIVE_BIG,
    nano::CALLRET,
    nano::INDIRECT_1,
    nano::INDIRECT_4,
    nano::INDIRECT_16,
    nano::FIB,
    nano::ALU,
];

/// Runs the named workload, or `all`, and prints one line for each. False if one of them failed, or if there is
/// none of that name.
pub fn run(kernel: &mut Kernel, name: &str) -> bool {
    let (mut found, mut ok) = (false, true);
    let wanted = |of: &str| name == "all" || name == of;
    for Workload { name, unit, run, .. } in ALL.iter().filter(|workload| wanted(workload.name)) {
        found = true;
        ok &= report(name, unit, run(kernel));
    }
    for operation in Current::PRIMITIVES.iter().filter(|operation| wanted(operation.name)) {
        found = true;
        ok &= report(operation.name, operation.unit, nano::primitive(kernel, operation));
    }
    if !found {
        println!("bench: name={name} ops=0 ok=false why=no-such-workload");
        println!("the workloads are `all` and:");
        list();
    }
    found && ok
}

/// Lists the workloads.
pub fn list() {
    let workloads = ALL.iter().map(|workload| (workload.name, workload.what));
    let operations = Current::PRIMITIVES.iter().map(|operation| (operation.name, operation.what));
    for (name, what) in workloads.chain(operations) {
        println!("  {name:<18}{what}");
    }
}

/// Prints a workload's line; false if it failed.
fn report(name: &str, unit: &str, outcome: Result<Outcome, Failure>) -> bool {
    match outcome {
        // Not a failure: the machine lacks the device that the workload needs.
        Err(Failure(why)) if why == DeviceError::Absent.word() => println!("skip: name={name} why={why}"),
        Err(Failure(why)) => {
            println!("bench: name={name} ops=0 ok=false why={why}");
            return false;
        }
        Ok(Outcome { ops, measured: Measured { ns, counters }, figures, values }) => {
            let counters = Figures(CurrentMmu::COUNTERS, counters);
            let figures = Figures(figures, values);
            println!("bench: name={name} ops={ops} ok=true unit={unit} ns={ns}{figures}{counters}");
        }
    }
    true
}

struct Figures(&'static [&'static str], [u64; 3]);

impl core::fmt::Display for Figures {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().zip(self.1).try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}
