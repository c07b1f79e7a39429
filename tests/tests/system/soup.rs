//! Random kernels: whatever they do, the host survives and says how they ended.
//!
//! `PARAVANE_SOUP_SEEDS` is how many kernels are tried, `PARAVANE_SOUP_FIRST` the first seed. A failure names its
//! seed.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use paravane::domain::DomainEnd;
use paravane_tests::boot::{Guest, Outcome, PATIENCE};
use paravane_tests::guests::HELLO;
use paravane_tests::soup::{MEMORY, STEPS, soup};
use paravane_tests::verdict::{broken_product, broken_test, note};

/// Kernels that are tried where nobody says how many.
const SEEDS: u64 = 48;
/// A kernel that loops or waits for ever is ended after this long.
const DEADLINE: Duration = Duration::from_millis(150);

fn number(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| broken_test(format_args!("{variable}={text} is no number")))
        }
        Err(_) => otherwise,
    }
}

/// Boots a kernel on every engine, and does not wait for ever for the host to come back.
fn boot(seed: u64) -> Vec<Outcome> {
    let (done, ended) = mpsc::channel();
    let host = std::thread::spawn(move || {
        let name = format!("soup of seed {seed}");
        let image = soup(seed);
        let guest = Guest { name: &name, mem_bytes: MEMORY, deadline: DEADLINE, ..Guest::new(image) };
        // Nobody listens any more if this took too long.
        let _ = done.send(guest.boot());
    });
    match ended.recv_timeout(PATIENCE) {
        Ok(outcomes) => outcomes,
        Err(RecvTimeoutError::Timeout) => broken_product(format_args!("the host hangs: soup of seed {seed}")),
        Err(RecvTimeoutError::Disconnected) => {
            let _ = host.join();
            broken_product(format_args!("the host panicked (see above): soup of seed {seed}"))
        }
    }
}

#[test]
fn random_kernels_end_alone() {
    let (first, seeds) = (number("PARAVANE_SOUP_FIRST", 1), number("PARAVANE_SOUP_SEEDS", SEEDS));
    let (mut exits, mut kernels, mut finished, mut killed, mut interrupted) = (0, 0, 0, 0, 0);
    for seed in first..first.saturating_add(seeds) {
        for outcome in boot(seed) {
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
        }
    }
    for outcome in Guest::new(HELLO).boot() {
        outcome.must_end(&DomainEnd::PowerOff);
    }
    note(format_args!(
        "soup: {kernels} kernels from seed {first} on: {finished} finished, {killed} killed, {interrupted} interrupted; \
         {exits} exits"
    ));
    // A soup that is never stirred shows nothing. A slow host does not get far with one, either.
    if exits < kernels * STEPS / 32 {
        broken_test(format_args!("{exits} exits of {kernels} kernels: they end too early"));
    }
}
