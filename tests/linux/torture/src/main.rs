//! Finds out whether a Linux, in a guest, keeps its programs' registers and memory apart.
//!
//! Several processes run the checks of the modules here at the same time, each in its own order. Each check compares
//! every byte of its result. The last line has the verdict:
//!
//! ```text
//! torture: pass: copies 40, exec 12, ... in 100 s, vectors of 64 bytes
//! torture: FAIL: vectors: register 17 holds ... instead of ...
//! ```
//!
//! usage: `torture SECONDS [PROCESSES]`. Exit status: 0 if every check passed, 1 if any failed, 2 for wrong arguments.
//!
//! `TORTURE_SPOIL=NAME` makes the check of that name alter one byte of the data that it is about to compare: it must
//! then fail. The tests do this for each check, so that no check can pass whatever it sees.

mod copies;
mod exec;
mod mappings;
mod numbers;
mod pipeline;
mod random;
mod signals;
mod sys;
mod team;
mod threads;
mod vectors;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use random::Random;

/// Why a check failed, for the verdict.
type Outcome = Result<(), String>;

/// One check, which is repeated.
struct Check {
    name: &'static str,
    run: fn(&mut Random) -> Outcome,
}

/// All checks.
const CHECKS: &[Check] = &[
    Check { name: "vectors", run: vectors::run },
    Check { name: "copies", run: copies::run },
    Check { name: "exec", run: exec::run },
    Check { name: "pipeline", run: pipeline::run },
    Check { name: "mappings", run: mappings::run },
    Check { name: "signals", run: signals::run },
    Check { name: "threads", run: threads::run },
    Check { name: "numbers", run: numbers::run },
];

/// Whether the check `name` must spoil its data.
fn spoils(name: &str) -> bool {
    std::env::var("TORTURE_SPOIL").is_ok_and(|wanted| wanted == name)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(status) = exec::as_child(&arguments) {
        return status;
    }
    let number = |index: usize| arguments.get(index).and_then(|text| text.parse::<u64>().ok());
    let (Some(seconds), true) = (number(0), arguments.len() <= 2) else {
        eprintln!("usage: torture SECONDS [PROCESSES]");
        return ExitCode::from(2);
    };
    let processes = number(1).unwrap_or(4).clamp(1, 64);
    let until = Instant::now() + Duration::from_secs(seconds);
    match team::run(CHECKS, processes, until) {
        Ok(counts) => {
            let counts: Vec<String> =
                CHECKS.iter().zip(counts).map(|(c, n)| format!("{} {n}", c.name)).collect();
            let width = vectors::width();
            println!("torture: pass: {} in {seconds} s, vectors of {width} bytes", counts.join(", "));
            ExitCode::SUCCESS
        }
        Err(what) => {
            println!("torture: FAIL: {what}");
            ExitCode::FAILURE
        }
    }
}
