//! What the processor needs without any technique: the same loops as in the guest, run by this process.
//!
//! Only those that need no privilege. A native figure for the others would need this host's ring 0, and a signal
//! handler is no stand-in: it would measure Linux's delivery of signals.

use paravane_nano::{ALU_WORDS, COMPUTE, Compute, Data, empty, rounds};

use super::result::Cycles;
use crate::host::code_page::CodePage;

/// Runs the loop of that name as the guest does; nothing if there is none, or if its result is wrong.
pub(super) fn native(name: &str) -> Option<Cycles> {
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

/// Of several measurements the one in the middle.
pub(super) fn middle(mut measured: Vec<Cycles>) -> Option<Cycles> {
    measured.sort_by(|a, b| a.median.total_cmp(&b.median));
    measured.get(measured.len().checked_sub(1)? / 2).copied()
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
        let of = |median| Cycles { median, min: 1.0 };
        assert_eq!(middle(vec![of(9.0), of(2.0), of(4.0), of(3.0)]), Some(of(3.0)));
        assert_eq!(middle(Vec::new()), None);
    }
}
