//! The types of a workload, and the measurement of its body.
#![forbid(unsafe_code)]

use paravane_guest::virtio::drivers::Error;

use crate::device::DeviceError;
use crate::exception::tell;
use crate::kernel::{Kernel, Memory};
use crate::machine::{Current, Machine};
use crate::memory::paging::{MAX_COUNTERS, MapError, Mmu};

/// A workload.
pub struct Workload {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// What it does, in one line.
    pub what: &'static str,
    /// The unit of its operations.
    pub unit: &'static str,
    /// Runs it: set-up, measured body, verification.
    pub run: fn(&mut Kernel) -> Result<Outcome, Failure>,
}

/// The result of a verified run.
pub struct Outcome {
    /// Operations done between the marks.
    pub ops: u64,
    /// The measurement.
    pub measured: Measured,
    /// The names of further figures to print.
    pub figures: &'static [&'static str],
    /// The values of `figures`, in the same order.
    pub values: [u64; 3],
}

impl Outcome {
    /// A result without further figures.
    pub const fn new(ops: u64, measured: Measured) -> Self {
        Self { ops, measured, figures: &[], values: [0; 3] }
    }
}

/// The measurement of a body.
#[derive(Clone, Copy)]
pub struct Measured {
    /// Nanoseconds.
    pub ns: u64,
    /// The machine's counters: what they advanced by.
    pub counters: [u64; MAX_COUNTERS],
}

/// Why a run failed, in one word.
pub struct Failure(pub &'static str);

impl Failure {
    /// `Err` unless `holds`.
    pub fn unless(holds: bool, otherwise: &'static str) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self(otherwise)) }
    }
}

impl From<MapError> for Failure {
    fn from(_: MapError) -> Self {
        Self("no-frames-for-page-tables")
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self(error.word())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        DeviceError::from(error).into()
    }
}

/// Code of the mark before a measured body.
const BEGIN: u8 = 1;
/// Code of the mark after a measured body.
const END: u8 = 2;

/// Runs a body between the marks; returns its result and the measurement.
pub fn measure<R>(memory: &mut Memory, body: impl FnOnce(&mut Memory) -> R) -> (R, Measured) {
    let counted = memory.mmu.counters();
    tell(BEGIN);
    let before = Current::clock();
    let result = body(memory);
    let ns = Current::clock().saturating_sub(before);
    tell(END);
    let mut counters = memory.mmu.counters();
    counters.iter_mut().zip(counted).for_each(|(count, before)| *count -= before);
    (result, Measured { ns, counters })
}
