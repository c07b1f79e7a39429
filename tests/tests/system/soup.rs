//! Random kernels: whatever they do, the host survives and reports how they ended.
//!
//! [`servings`](paravane_tests::soup::servings) determines how many kernels are tried, or for how long. A failure names
//! its seed.

use std::time::Duration;

use paravane::launch::EngineChoice;
use paravane::machine::end::DomainEnd;
use paravane_tests::boot::{Guest, Outcome};
use paravane_tests::guests::HELLO;
use paravane_tests::soup::servings::{Servings, watched};
use paravane_tests::soup::{MEMORY, STEPS, soup};
use paravane_tests::verdict::{broken_product, broken_test, note};

/// The number of kernels on each engine, by default.
const SEEDS: u64 = 48;
/// Ends a kernel that loops or waits for ever.
const DEADLINE: Duration = Duration::from_millis(150);

/// Boots a kernel, and fails if the host does not return in time.
fn boot(engine: EngineChoice, seed: u64) -> Outcome {
    let name = format!("soup of seed {seed} on {}", engine.name());
    watched(&name.clone(), move || {
        let guest = Guest { name: &name, mem_bytes: MEMORY, deadline: DEADLINE, ..Guest::new(soup(seed)) };
        guest
            .boot_on(engine)
            .unwrap_or_else(|why| broken_product(format_args!("{name} does not start: {why}")))
    })
}

#[test]
fn random_kernels_end_alone() {
    let servings = Servings::asked_for(SEEDS);
    let (mut exits, mut kernels, mut finished, mut killed, mut interrupted) = (0, 0, 0, 0, 0);
    servings.on_each_engine(|engine, seed| {
        let outcome = boot(engine, seed);
        kernels += 1;
        exits += outcome.report.ledger.exits();
        match &outcome.end {
            DomainEnd::Killed(why) => {
                killed += 1;
                let one_line = !why.is_empty() && !why.contains('\n');
                outcome.must(one_line, "should have died with one line that says why");
            }
            DomainEnd::Interrupted => interrupted += 1,
            _ => finished += 1,
        }
    });
    for outcome in Guest::new(HELLO).boot() {
        outcome.must_end(&DomainEnd::PowerOff);
    }
    note(format_args!(
        "soup: {kernels} kernels from seed {} on: {finished} finished, {killed} killed, {interrupted} interrupted; \
         {exits} exits",
        servings.first
    ));
    // If no kernel gets anywhere, the test shows nothing. On a slow host they do not get far, either.
    if exits < kernels * STEPS / 32 {
        broken_test(format_args!("{exits} exits of {kernels} kernels: they end too early"));
    }
}
