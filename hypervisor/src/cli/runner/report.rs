//! Results in the words of Rust's own tests, which editors and people know.

use std::io::{self, Write};
use std::time::Instant;

use super::each::Outcome;
use crate::image::test_list::GuestTest;
use crate::text::printable;

/// What has been printed so far, and what is to be printed at the end.
pub(super) struct Report {
    begun: Instant,
    quiet: bool,
    show_output: bool,
    passed: usize,
    ignored: usize,
    filtered: usize,
    /// Names, and what was printed; the failed ones with their exit status.
    failures: Vec<(String, Vec<u8>, u8)>,
    successes: Vec<(String, Vec<u8>)>,
}

impl Report {
    /// Begins the report on `chosen` tests, with `filtered` others.
    pub(super) fn new(chosen: usize, filtered: usize, quiet: bool, show_output: bool) -> Self {
        put(&format!("\nrunning {chosen} {}\n", if chosen == 1 { "test" } else { "tests" }));
        let begun = Instant::now();
        let (failures, successes) = (Vec::new(), Vec::new());
        Self { begun, quiet, show_output, passed: 0, ignored: 0, filtered, failures, successes }
    }

    /// A test has ended.
    pub(super) fn add(&mut self, test: &GuestTest, outcome: Outcome) {
        let name = printable::printable(&test.name).to_string();
        let (word, letter) = match &outcome {
            Outcome::Passed { .. } => ("ok".to_owned(), "."),
            Outcome::Ignored => ("ignored".to_owned(), "i"),
            Outcome::Failed { why, .. } => (format!("FAILED{why}"), "F"),
        };
        if self.quiet {
            put(letter);
        } else {
            let expected = if test.should_panic { " - should panic" } else { "" };
            put(&format!("test {name}{expected} ... {word}\n"));
        }
        match outcome {
            Outcome::Passed { output } => {
                self.passed += 1;
                self.successes.push((name, output));
            }
            Outcome::Ignored => self.ignored += 1,
            Outcome::Failed { status, output, .. } => self.failures.push((name, output, status)),
        }
    }

    /// Ends the report; the exit status.
    pub(super) fn finish(mut self) -> u8 {
        self.failures.sort();
        self.successes.sort();
        if self.quiet {
            put("\n");
        }
        if self.show_output {
            section("successes", self.successes.iter().map(|(name, output)| (name, output)));
        }
        if !self.failures.is_empty() {
            section("failures", self.failures.iter().map(|(name, output, _)| (name, output)));
        }
        let verdict = if self.failures.is_empty() { "ok" } else { "FAILED" };
        put(&format!(
            "\ntest result: {verdict}. {} passed; {} failed; {} ignored; 0 measured; {} filtered out; finished in {:.2}s\n\n",
            self.passed,
            self.failures.len(),
            self.ignored,
            self.filtered,
            self.begun.elapsed().as_secs_f64(),
        ));
        self.failures.first().map_or(0, |(_, _, status)| *status)
    }
}

/// What tests printed, then their names.
fn section<'a>(title: &str, tests: impl Iterator<Item = (&'a String, &'a Vec<u8>)> + Clone) {
    put(&format!("\n{title}:\n"));
    for (name, output) in tests.clone().filter(|(_, output)| !output.is_empty()) {
        let text = printable::lines(&String::from_utf8_lossy(output)).to_string();
        put(&format!("\n---- {name} ----\n{}\n", text.trim_end()));
    }
    put(&format!("\n{title}:\n"));
    tests.for_each(|(name, _)| put(&format!("    {name}\n")));
}

/// Prints at once: a reader wants to know which test is slow. If nobody reads, the exit status still tells.
fn put(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
