//! A guest's program, run by this host's kernel: the very same file, from memory.

use std::time::Duration;

use serde::Serialize;

use super::outcome::{Outcome, OutcomeError};
use crate::host::program::{self, ProgramError};
use crate::image::builtin::PROGRAMS;

/// One run of a program without any guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NativeRun {
    /// Operations that it did.
    pub ops: u64,
    /// What they took, in nanoseconds, by the program's own clock.
    pub ns: u64,
}

impl NativeRun {
    /// Nanoseconds for each operation.
    pub fn each_ns(&self) -> f64 {
        self.ns as f64 / self.ops.max(1) as f64
    }
}

/// Why there is no such run.
#[derive(Debug, thiserror::Error)]
pub(super) enum NativeError {
    /// The host does not run it.
    #[error("{0}")]
    Program(#[from] ProgramError),
    /// Its line cannot be read.
    #[error("{0}")]
    Outcome(#[from] OutcomeError),
    /// It failed here.
    #[error("the program failed on this host: {0}")]
    Failed(String),
    /// Its line says no time.
    #[error("the program's line has no usable `ns`")]
    NoTime,
}

/// Runs the program in `words`, which are separated by commas, and reads its line about `workload`.
pub(super) fn run(workload: &str, words: &str, limit: Duration) -> Result<NativeRun, NativeError> {
    let words: Vec<&str> = words.split(',').collect();
    parsed(&program::run(PROGRAMS, &words, limit)?, workload)
}

fn parsed(text: &str, workload: &str) -> Result<NativeRun, NativeError> {
    let Outcome { ops, ok, mut details, .. } = Outcome::parse(text, workload)?;
    if !ok {
        return Err(NativeError::Failed(details.remove("why").unwrap_or_default()));
    }
    let ns = details.get("ns").and_then(|ns| ns.parse().ok()).ok_or(NativeError::NoTime)?;
    Ok(NativeRun { ops, ns })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::WORKLOADS;

    /// The line of each program is what is read of a guest, too. A host that forbids to run them tests nothing here.
    #[test]
    fn every_program_of_the_suite_runs_here_and_says_what_it_did() {
        for workload in WORKLOADS {
            let Some(words) = workload.program else { continue };
            match run(workload.name, words, Duration::from_secs(60)) {
                Ok(run) => assert!(run.ops > 0 && run.ns > 0, "{}: {run:?}", workload.name),
                Err(NativeError::Program(why @ ProgramError::Forbidden { .. })) => {
                    return println!("SKIP {why}");
                }
                Err(why) => panic!("{}: {why}", workload.name),
            }
        }
    }

    #[test]
    fn a_program_that_failed_has_no_time() {
        let error = |text| parsed(text, "storm").unwrap_err().to_string();
        assert_eq!(
            error("bench: name=storm ops=0 ok=false why=wrong-result"),
            "the program failed on this host: wrong-result"
        );
        assert_eq!(error("bench: name=storm ops=3 ok=true"), "the program's line has no usable `ns`");
        assert_eq!(error("bench: name=storm ops=3 ok=true ns=-1"), "the program's line has no usable `ns`");
        let right = parsed("bench: name=storm ops=3 ok=true unit=process ns=12 each=4.000", "storm").unwrap();
        assert_eq!((right, right.each_ns()), (NativeRun { ops: 3, ns: 12 }, 4.0));
    }
}
