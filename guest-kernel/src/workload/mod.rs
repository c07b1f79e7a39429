//! Workloads, by which the two machines are compared.
//!
//! Each has three parts: set-up, a measured body between two marks, and verification. Only the body is measured, and
//! its result is verified by other means than the body used. Workloads are deterministic: the same operations in the
//! same order on every machine and in every run. No workload knows its machine. A new one is a file here and a line
//! in [`ALL`].

use crate::device::DeviceError;
use crate::kernel::{CurrentMmu, Kernel};
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
    timer::WORKLOAD,
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
    for workload in ALL.iter().filter(|w| name == "all" || name == w.name) {
        found = true;
        ok &= report(workload, (workload.run)(kernel));
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
    for workload in ALL {
        println!("  {:<18}{}", workload.name, workload.what);
    }
}

/// Prints a workload's line; false if it failed.
fn report(workload: &Workload, outcome: Result<Outcome, Failure>) -> bool {
    let Workload { name, unit, .. } = workload;
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
