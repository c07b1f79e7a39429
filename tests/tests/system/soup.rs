//! Random kernels: whatever they do, the host survives and says how they ended.
//!
//! [`servings`](paravane_tests::soup::servings) says how many kernels are tried, or for how long. A failure names its
//! seed.

use std::time::Duration;

use paravane::launch::EngineChoice;
use paravane::machine::end::DomainEnd;
use paravane_tests::boot::{Guest, Outcome};
use paravane_tests::guests::HELLO;
use paravane_tests::soup::servings::{Servings, watched};
use paravane_tests::soup::{MEMORY, STEPS, soup};
use paravane_tests::verdict::{broken_product, broken_test, note};

/// Kernels that are tried where nobody says how many.
const SEEDS: u64 = 48;
/// A kernel that loops or waits for ever is ended after this long.
const DEADLINE: Duration = Duration::from_millis(150);

/// Boots a kernel, and does not wait for ever for the host to come back.
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
    // A soup that is never stirred shows nothing. A slow host does not get far with one, either.
    if exits < kernels * STEPS / 32 {
        broken_test(format_args!("{exits} exits of {kernels} kernels: they end too early"));
    }
}
