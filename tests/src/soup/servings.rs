//! How many seeds a random test tries, or for how long, as the environment says.
//!
//! * `PARAVANE_SOUP_FIRST`: the first seed.
//! * `PARAVANE_SOUP_SEEDS`: the number of seeds for each engine.
//! * `PARAVANE_SOUP_SECONDS`: instead of a number of seeds, the time for each engine. The engines are tested one after
//!   the other, so that a run takes this time for each of them.

use std::ops::Range;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use paravane::launch::EngineChoice;

use crate::boot::PATIENCE;
use crate::machine::engines;
use crate::verdict::{broken_product, broken_test};

/// The seeds to try.
#[derive(Clone, Debug)]
pub struct Servings {
    /// The first seed.
    pub first: u64,
    /// The number of seeds for each engine.
    seeds: u64,
    /// The time for each engine; overrides the number of seeds.
    time: Option<Duration>,
}

impl Servings {
    /// As the environment says; by default `seeds` for each engine.
    ///
    /// # Panics
    /// If a variable is not a number.
    pub fn asked_for(seeds: u64) -> Self {
        Self {
            first: number("PARAVANE_SOUP_FIRST").unwrap_or(1),
            seeds: number("PARAVANE_SOUP_SEEDS").unwrap_or(seeds),
            time: number("PARAVANE_SOUP_SECONDS").map(Duration::from_secs),
        }
    }

    /// Tries seeds on one engine after the other. Each begins with the first seed, so that a run can be repeated.
    pub fn on_each_engine(&self, mut serve: impl FnMut(EngineChoice, u64)) {
        for &engine in engines() {
            self.each(|seed| serve(engine, seed));
        }
    }

    /// Tries seeds.
    pub fn each(&self, serve: impl FnMut(u64)) {
        let start = Instant::now();
        let in_time = |_: &u64| self.time.is_none_or(|time| start.elapsed() < time);
        self.range().take_while(in_time).for_each(serve);
    }

    fn range(&self) -> Range<u64> {
        let end = if self.time.is_some() { u64::MAX } else { self.first.saturating_add(self.seeds) };
        self.first..end
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| broken_test(format_args!("{variable}={text} is not a number"))))
}

/// Runs `work` in a new thread, and fails with `name` if it panics or does not return in time.
///
/// # Panics
/// In these two cases.
pub fn watched<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    // After the time limit the receiver is gone.
    let host = std::thread::spawn(move || drop(done.send(work())));
    match ended.recv_timeout(PATIENCE) {
        Ok(result) => {
            // Waits for the thread's end, so that later counts of threads do not include it.
            let _ = host.join();
            result
        }
        Err(RecvTimeoutError::Timeout) => broken_product(format_args!("the host hangs: {name}")),
        Err(RecvTimeoutError::Disconnected) => {
            let _ = host.join();
            broken_product(format_args!("the host panicked (see above): {name}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_replaces_the_number_of_seeds() {
        let some = Servings { first: 7, seeds: 3, time: None };
        assert_eq!(some.range(), 7..10);
        let timed = Servings { time: Some(Duration::from_secs(1)), ..some };
        assert_eq!(timed.range(), 7..u64::MAX);
    }
}
