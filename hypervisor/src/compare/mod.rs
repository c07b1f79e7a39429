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

mod changes;
mod comparison;
mod fidelity;
mod figures;
mod grid;
mod host;
mod html;
mod native;
mod native_program;
mod needs;
mod order;
mod outcome;
mod overview;
mod paragraphs;
mod result;
mod sample;
mod schedule;
mod side_by_side;
mod side_by_side_table;
mod statistics;
mod table;
mod workloads;

pub use changes::{
    Change, Changes, Difference, Measure, Recorded, RecordedError, Verdict as ChangeVerdict, changes_text,
};
pub use comparison::{Comparison, NotHere, Settings};
pub use fidelity::{
    Answer, Fidelity, FidelityRow, FidelitySettings, ROWS, Row, Verdict, fidelity, fidelity_text,
};
pub use host::HostFacts;
pub use html::{check_shape, html};
pub use native_program::NativeRun;
pub use needs::{Needs, Unavailable};
pub use order::reading;
pub use outcome::{Outcome, OutcomeError};
pub use result::{
    Cycles, EngineFacts, RunFigures, Saved, Saving, TechniqueResult, WholeBoot, WorkloadResult,
};
pub use sample::{Failure, Machine, Sample, measure};
pub use schedule::{Progress, compare};
pub use side_by_side::{LeftOut, SideBySide, TrapDifference};
pub use side_by_side_table::side_text;
pub use statistics::Spread;
pub use table::{View, text};
pub use workloads::{Kind, WORKLOADS, Workload};

/// What the numbers do not mean; part of every report.
pub const NOTES: [&str; 7] = [
    "Every technique but `pv` runs the same image, unmodified. That of `pv` is the same source, compiled with the same \
     flags: only its machine layer asks (hypercall) where the other executes privileged instructions and stores to page \
     tables.",
    "Times are wall time between the guest's marks. An exit is a departure from the guest's context to the hypervisor: \
     an instruction that is interpreted, or emulated by a translation or a patch, is none. Such work is counted beside \
     the exits.",
    "`trap` is the classical technique, the kernel deprivileged and each privileged instruction a fault; it is not what \
     KVM's guests pay. A kernel at ring 0 under VT-x or SVM with nested paging (`hvm`) needs no exit for page-table \
     stores, CLI, STI or context switches.",
    "What an exit costs depends on the engine and on the host's own virtualization, and ratios of time with it: where \
     exits are dear, even interpretation wins what exits often. Look at the rows that compute. Counts do not depend on \
     the host.",
    "Techniques that need an engine run on the same one. `interpret` needs none, `hvm` has its own.",
    "Devices: the same device models and threads of the host serve all techniques. The disk is a file in \
     the page cache, the network's other side a peer in this process: what is measured is the way there, not a medium.",
    "With several repetitions, what is shown of a technique is the one run whose time is the median; \
     the others are in the JSON.",
];
