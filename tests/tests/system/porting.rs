//! The kernel of the porting guide: right on the bare machine by every technique, and step by step on Paravane.
//!
//! `docs/port.md` prints the table that the last test makes: `cargo test --test system porting -- --nocapture`.

use paravane::audit::{Effect, Policy, audit};
use paravane::machine::end::DomainEnd;
use paravane_tests::boot::{Guest, Outcome};
use paravane_tests::guests::PORT;
use paravane_tests::verdict::broken_product;

use crate::techniques::boot_by_each;
use crate::workloads::own_traps;

/// The kernel's work, and the step of the port from which on it can be done.
const WORK: [(&str, usize); 5] = [("console", 1), ("faults", 2), ("map", 2), ("ticks", 3), ("sections", 3)];

/// What each piece of work needs first that the step before does not have: the instruction, and where it is.
const FIRST_MISSED: [(&str, usize, &str, &str); 3] = [
    ("faults", 1, "`lgdt", "bare/exceptions.rs:"),
    ("ticks", 2, "`lgdt", "bare/exceptions.rs:"),
    ("sections", 2, "`cli`", "bare/cpu.rs:"),
];

fn guest(step: usize, cmdline: &str) -> Guest<'_> {
    Guest { name: "the kernel of the porting guide", cmdline, ..Guest::new(PORT[step]) }
}

fn exits(outcome: &Outcome) -> u64 {
    own_traps(&outcome.report.ledger.whole(0))
}

fn must_be_right<'a>(outcome: &Outcome, works: impl IntoIterator<Item = &'a str>) {
    outcome.must_end(&DomainEnd::PowerOff);
    for work in works {
        outcome.must_print(&format!("{work}: right\n"));
    }
}

#[test]
fn it_is_right_by_every_technique_before_the_port() {
    for (_, outcome) in boot_by_each(&guest(0, "")) {
        must_be_right(&outcome, WORK.map(|(work, _)| work));
    }
}

#[test]
fn each_step_does_what_has_been_ported() {
    for step in 1..PORT.len() {
        let ported: Vec<_> = WORK.iter().filter(|(_, from)| *from <= step).map(|(work, _)| *work).collect();
        let cmdline = format!("work={}", ported.join(","));
        for outcome in guest(step, &cmdline).boot() {
            must_be_right(&outcome, ported.iter().copied());
        }
    }
}

#[test]
fn what_has_not_been_ported_says_so() {
    for (work, step, instruction, place) in FIRST_MISSED {
        for outcome in guest(step, &format!("work={work}")).boot() {
            let told = outcome.report.autopsy.as_ref().map(ToString::to_string).unwrap_or_default();
            for part in [instruction, place, "instead:"] {
                outcome.must(
                    told.contains(part),
                    format_args!("should have been explained by {part:?}:\n{told}"),
                );
            }
        }
    }
}

#[test]
fn the_audit_is_shorter_after_each_step_and_empty_in_the_end() {
    let strict = Policy::new(Effect::ALL.to_vec(), Vec::new(), Vec::new());
    let left = PORT.map(|image| strict.total(&audit(image).unwrap()));
    assert!(left[0] > left[1] && left[1] > left[2] && left[2] > left[3], "{left:?}");
    assert_eq!(left[3..], [0, 0]);
}

/// Exits of a boot that does nothing, and of one for each piece of work; `None` where it has not been ported.
type Figures = [Option<u64>; 1 + WORK.len()];

/// A row of the guide's table for each technique and engine that a step runs by.
fn rows(step: usize) -> Vec<(String, Figures)> {
    let mut rows: Vec<(String, Figures)> = Vec::new();
    for (column, work) in ["none"].into_iter().chain(WORK.map(|(work, _)| work)).enumerate() {
        let cmdline = format!("work={work}");
        let guest = guest(step, &cmdline);
        let outcomes: Vec<(&str, Outcome)> = if step == 0 {
            boot_by_each(&guest).into_iter().map(|(technique, outcome)| (technique.name, outcome)).collect()
        } else {
            guest.boot().into_iter().map(|outcome| ("pv", outcome)).collect()
        };
        rows.resize_with(outcomes.len(), Default::default);
        for ((label, figures), (by, outcome)) in rows.iter_mut().zip(outcomes) {
            *label = format!("step {step}, {by}, {}", outcome.engine);
            figures[column] = (outcome.end == DomainEnd::PowerOff).then(|| exits(&outcome));
        }
    }
    rows
}

/// The guide's table, and what it says of it.
#[test]
fn each_step_saves_exits() {
    let table: [Vec<(String, Figures)>; PORT.len()] = std::array::from_fn(rows);
    println!("{:40} {:>8}{}", "", "start", WORK.map(|(work, _)| format!("{work:>9}")).concat());
    for (label, figures) in table.iter().flatten() {
        let cells = figures.map(|exits| exits.map_or_else(|| "-".to_owned(), |exits| exits.to_string()));
        println!("{label:40}{}", cells.map(|cell| format!("{cell:>9}")).concat());
    }
    let of_its_own = |(label, figures): &(String, Figures), work: &str| {
        let column = 1 + WORK.iter().position(|(name, _)| *name == work).unwrap();
        let [Some(start), Some(exits)] = [figures[0], figures[column]] else {
            broken_product(format_args!("{label} did not do {work}"));
        };
        exits.saturating_sub(start)
    };
    for row in table[2].iter().chain(&table[3]) {
        assert!(of_its_own(row, "map") >= 512, "each mapping is a hypercall: {row:?}");
    }
    for row in &table[4] {
        assert!(of_its_own(row, "map") <= 8, "they are queued: {row:?}");
        assert!(of_its_own(row, "sections") <= 8, "they are memory accesses: {row:?}");
    }
}
