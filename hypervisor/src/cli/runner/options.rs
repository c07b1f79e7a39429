//! The options of Rust's tests, as far as they make sense for guests.

use std::ffi::OsString;
use std::num::NonZero;
use std::thread::available_parallelism;

use clap::Parser;

use crate::image::test_list::GuestTest;

/// What `cargo test -- ...` passes.
#[derive(Debug, Parser)]
#[command(name = "cargo test --", about = "Run a kernel's tests, each in a guest of its own")]
pub(super) struct TestOptions {
    /// Run the tests whose name contains one of these
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Names are whole names
    #[arg(long)]
    exact: bool,
    /// Leave out the tests whose name contains this
    #[arg(long, value_name = "FILTER")]
    skip: Vec<String>,
    /// Print the names of the tests
    #[arg(long)]
    pub(super) list: bool,
    /// Run only the tests that are ignored otherwise
    #[arg(long, conflicts_with = "include_ignored")]
    ignored: bool,
    /// Run the tests that are ignored otherwise, too
    #[arg(long)]
    include_ignored: bool,
    /// Print what guests print at once
    #[arg(long = "nocapture", visible_alias = "no-capture")]
    pub(super) no_capture: bool,
    /// Print what the guests of passed tests printed, too
    #[arg(long)]
    pub(super) show_output: bool,
    /// How many guests run at a time [default: one for each processor]
    #[arg(long, value_name = "N")]
    test_threads: Option<NonZero<usize>>,
    /// Print a character for each test
    #[arg(long, short)]
    quiet: bool,
    /// How results are printed
    #[arg(long, value_parser = ["pretty", "terse"])]
    format: Option<String>,
    /// Has no effect: results have no colours
    #[arg(long, value_name = "WHEN", hide = true)]
    color: Option<String>,
}

impl TestOptions {
    /// Ends the program if they make no sense, as clap does.
    pub(super) fn parse(arguments: &[OsString]) -> Self {
        let name = OsString::from("cargo test --");
        Self::parse_from(std::iter::once(&name).chain(arguments))
    }

    /// Whether a test was asked for.
    pub(super) fn choose(&self, test: &GuestTest) -> bool {
        let matches = |filter: &String| {
            if self.exact { test.name == *filter } else { test.name.contains(filter) }
        };
        (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skip.iter().any(matches)
            && (test.ignored || !self.ignored)
    }

    /// Whether a test that was chosen does not run.
    pub(super) fn skips(&self, test: &GuestTest) -> bool {
        test.ignored && !self.ignored && !self.include_ignored
    }

    /// How many guests run at a time.
    pub(super) fn threads(&self) -> usize {
        let threads = self.test_threads.or_else(|| available_parallelism().ok());
        threads.map_or(1, NonZero::get)
    }

    /// Whether each test is one character only.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet || self.format.as_deref() == Some("terse")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(line: &str) -> String {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let options = TestOptions::parse(&words);
        let test = |name: &str, ignored| GuestTest { name: name.into(), should_panic: false, ignored };
        let all = [test("heap::grows", false), test("heap::grows_far", true), test("timer", false)];
        let names = all.iter().filter(|test| options.choose(test) && !options.skips(test));
        names.map(|test| test.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn tests_are_chosen_as_rusts_are() {
        assert_eq!(chosen(""), "heap::grows timer");
        assert_eq!(chosen("heap"), "heap::grows");
        assert_eq!(chosen("grows --include-ignored"), "heap::grows heap::grows_far");
        assert_eq!(chosen("--ignored"), "heap::grows_far");
        assert_eq!(chosen("heap::grows --exact --include-ignored --nocapture"), "heap::grows");
        assert_eq!(chosen("--skip grows --test-threads=1"), "timer");
        assert_eq!(chosen("tim heap -q"), "heap::grows timer");
    }
}
