//! What the processor needs without any technique: the same loops as in the guest, run by this process.
//!
//! Only those that need no privilege, and programs, which this host's kernel serves instead of the guest's. A native
//! figure for the others would need this host's ring 0, and a signal handler is no stand-in: it would measure Linux's
//! delivery of signals.

use paravane_nano::{ALU_WORDS, COMPUTE, Compute, Data, empty, rounds};

use super::native_program::{self, NativeRun};
use super::result::Cycles;
use super::{Machine, Workload};
use crate::host::code_page::CodePage;

/// What was measured of a workload without any guest.
#[derive(Debug, Default)]
pub(super) struct Natively {
    cycles: Vec<Cycles>,
    programs: Vec<NativeRun>,
    missing: Option<String>,
}

impl Natively {
    /// Measures once, if there is a way to; what does not count is done as well.
    pub(super) fn measure(&mut self, workload: &Workload, machine: Option<&Machine>, counts: bool) {
        let Some((words, machine)) = workload.program.zip(machine) else {
            self.cycles.extend(counts.then(|| native(workload.name)).flatten());
            return;
        };
        match native_program::run(workload.name, words, machine.deadline) {
            Ok(run) => self.programs.extend(counts.then_some(run)),
            Err(why) => self.missing = Some(why.to_string()),
        }
    }

    /// Of the code's measurements the one in the middle.
    pub(super) fn cycles(&self) -> Option<Cycles> {
        middle(&self.cycles, |cycles| cycles.median)
    }

    /// Of the program's runs the one in the middle.
    pub(super) fn program(&self) -> Option<NativeRun> {
        middle(&self.programs, |run| run.each_ns())
    }

    /// Why the program was not run, or not to its end.
    pub(super) fn missing(&self) -> Option<String> {
        self.missing.clone()
    }
}

/// Runs the loop of that name as the guest does; nothing if there is none, or if its result is wrong.
fn native(name: &str) -> Option<Cycles> {
    match COMPUTE.iter().find(|compute| compute.name == name) {
        Some(compute) => computed(compute),
        None if name == "smc" => stored_into_code(),
        None => None,
    }
}

/// As many repetitions as in the guest. Nothing on hosts without memory that is both written and executed.
fn stored_into_code() -> Option<Cycles> {
    const REPETITIONS: u64 = 1000;
    let mut page = CodePage::new()?;
    let mut right = page.store_and_run(REPETITIONS).1;
    let cycles = rounds(
        || empty(REPETITIONS),
        || page.store_and_run(REPETITIONS),
        |(n, is_right)| {
            right &= is_right;
            n
        },
    );
    right.then(|| Cycles::of_hundredths(cycles.median, cycles.min))
}

fn computed(compute: &Compute) -> Option<Cycles> {
    let mut words: Box<[u64; ALU_WORDS]> = vec![0; ALU_WORDS].into_boxed_slice().try_into().ok()?;
    let mut data = Data::new(&mut words);
    let n = compute.repetitions;
    let mut right = compute.run(&mut data, n).done().right;
    let cycles = rounds(
        || compute.empty(n),
        || compute.run(&mut data, n),
        |run| {
            right &= run.done().right;
            run.repetitions()
        },
    );
    right.then(|| Cycles::of_hundredths(cycles.median, cycles.min))
}

/// Of several measurements the one in the middle, of an even number the lower one.
fn middle<T: Copy>(measured: &[T], by: impl Fn(&T) -> f64) -> Option<T> {
    let mut sorted = measured.to_vec();
    sorted.sort_by(|a, b| by(a).total_cmp(&by(b)));
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_privilege_runs_here() {
        let alu = native("alu").unwrap();
        assert!(alu.min > 0.0 && alu.min <= alu.median, "{alu:?}");
        let smc = native("smc").unwrap();
        assert!(smc.min > alu.min, "a store into code that runs next costs more than a loop's pass: {smc:?}");
        assert!(native("cr3wr").is_none());
    }

    #[test]
    fn the_middle_is_a_measurement() {
        assert_eq!(middle(&[9.0, 2.0, 4.0, 3.0], |value| *value), Some(3.0));
        assert_eq!(middle(&[], |value: &f64| *value), None);
    }
}
