//! Workloads by techniques: the same kernel, the same work, virtualized in different ways.
//!
//! Each measurement is one boot of the reference guest with `bench=NAME` on its command line. The guest brackets
//! its work with marks and prints one line about the result, which it has verified itself; the ledger knows what
//! happened between the marks. Which techniques there are is said by
//! [`TECHNIQUES`](crate::technique::TECHNIQUES); here they have nothing but names.
//!
//! Runs on one thread, which becomes the virtual CPU's of each guest in turn. Not signal-safe.
//!
//! What may not be done here: treating one technique, workload or host specially, or printing a number that was
//! not measured in this run.

#![forbid(unsafe_code)]

mod comparison;
mod host;
mod needs;
mod outcome;
mod sample;
mod side_by_side;
mod side_by_side_table;
mod table;
mod workloads;

pub use comparison::{
    Comparison, EngineFacts, Progress, RunFigures, Saved, Saving, Settings, TechniqueResult, WholeBoot,
    WorkloadResult, compare,
};
pub use host::HostFacts;
pub use needs::{Needs, Unavailable};
pub use outcome::{Outcome, OutcomeError};
pub use sample::{Failure, Machine, Sample, measure};
pub use side_by_side::{LeftOut, SideBySide, TrapDifference};
pub use side_by_side_table::side_text;
pub use table::text;
pub use workloads::{Kind, WORKLOADS, Workload};

/// What the numbers do not mean; part of every report.
pub const NOTES: [&str; 6] = [
    "Both techniques run the same kernel source, compiled with the same flags, on the same engine at CPL 3; \
     they differ in whether the kernel asks (hypercall) or trips (privileged instruction, protected page table).",
    "A kernel at ring 0 under hardware virtualization (VT-x, SVM) with nested paging needs no trap for page-table \
     stores, CLI/STI or context switches; `trap` is what it costs without that hardware, not what KVM guests pay.",
    "Times are wall time between the guest's marks; \"in host\" is the part that the hypervisor itself worked. \
     The rest is guest code and the way in and out.",
    "What an exit costs depends on the engine and on the host's own virtualization; compare ratios and counts \
     between machines, not times.",
    "Devices: the same device models and threads of the host serve both techniques. The disk is a file in \
     the page cache, the network's other side a peer in this process: what is measured is the way there, not a medium.",
    "With several repetitions, what is shown of a technique is the one run whose time is the median; \
     the others are in the JSON.",
];
