//! Random user programs: whatever they do, their kernel and the host survive.
//!
//! [`servings`](paravane_tests::soup::servings) determines how many guests are tried, or for how long. A failure names
//! its seed, and the guest prints the number of the program.

use std::time::Duration;

use paravane::launch::EngineChoice;
use paravane::machine::end::DomainEnd;
use paravane_tests::boot::{Guest, Outcome, PATIENCE};
use paravane_tests::guests::USER_SOUP;
use paravane_tests::soup::servings::{Servings, watched};
use paravane_tests::verdict::{broken_product, broken_test, note};

/// The number of guests on each engine, by default.
const SEEDS: u64 = 6;
/// The number of programs that a guest runs.
const PROGRAMS: u64 = 500;
/// Ends a guest that hangs: far longer than a guest needs.
const DEADLINE: Duration = PATIENCE;

fn boot(engine: EngineChoice, seed: u64) -> Outcome {
    let name = format!("user soup of seed {seed} on {}", engine.name());
    watched(&name.clone(), move || {
        let cmdline = format!("seed={seed} programs={PROGRAMS}");
        let guest = Guest { name: &name, cmdline: &cmdline, deadline: DEADLINE, ..Guest::new(USER_SOUP) };
        guest
            .boot_on(engine)
            .unwrap_or_else(|why| broken_product(format_args!("{name} does not start: {why}")))
    })
}

/// The number with this name in the guest's last line.
fn counted(outcome: &Outcome, what: &str) -> u64 {
    let mut words = outcome.text.lines().filter_map(|line| line.strip_prefix("user-soup: "));
    let count = words.next_back().and_then(|line| {
        let mut words = line.split_whitespace();
        words.find_map(|word| word.strip_prefix(what)?.strip_prefix('=')?.parse().ok())
    });
    count.unwrap_or_else(|| broken_test(format_args!("no `{what}=` in: {}", outcome.text)))
}

#[test]
fn random_user_programs_harm_no_kernel() {
    let servings = Servings::asked_for(SEEDS);
    let mut guests = 0;
    let mut sums = ["programs", "faults", "page-faults", "calls", "events"].map(|what| (what, 0));
    servings.on_each_engine(|engine, seed| {
        let outcome = boot(engine, seed);
        outcome.must_end(&DomainEnd::PowerOff);
        guests += 1;
        for (what, sum) in &mut sums {
            *sum += counted(&outcome, what);
        }
    });
    let counts = sums.map(|(what, sum)| format!("{sum} {what}")).join(", ");
    note(format_args!("user soup: {guests} guests from seed {} on: {counts}", servings.first));
    let [programs, ways @ ..] = sums.map(|(_, sum)| sum);
    // The test only shows something if programs end in every possible way.
    if programs != guests * PROGRAMS || ways.contains(&0) {
        broken_test(format_args!("too little came of the programs: {counts}"));
    }
}
