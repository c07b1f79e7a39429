//! `paravane runner`: what cargo runs instead of a kernel's programs. A kernel is booted, as `run` does; a test image's
//! tests run in guests of their own, with the options and the output of Rust's tests.
//!
//! Each guest is a process of this same program, so that a test that brings its guest down, or its host, fails alone.

#![forbid(unsafe_code)]

mod each;
mod options;
mod report;

use std::ffi::OsString;
use std::path::Path;

use anyhow::Context;

use super::input_file;
use crate::image::Image;
use crate::image::test_list::{GuestTest, tests};
use each::Each;
use options::TestOptions;
use report::Report;

const HELP: &str = "\
In a kernel's .cargo/config.toml:

  [target.x86_64-unknown-linux-gnu]
  runner = [\"paravane\", \"runner\"]

Then `cargo run -- OPTIONS` boots the kernel with these options of `paravane run`, and `cargo test -- OPTIONS` runs \
its tests with these options of Rust's tests: FILTER, --exact, --list, --ignored, --include-ignored, --skip, \
--nocapture, --show-output, --test-threads.

Options of `run` for every guest stand before the image, and end with `--`:

  runner = [\"paravane\", \"runner\", \"--rng\", \"--timeout\", \"10\", \"--\"]

Exit status: as for `paravane run`; of tests, that of the first one that failed. A test that should have panicked and \
did not counts as a crash (3). A test may take 60 s unless --timeout says otherwise.";

/// The most memory that an image may unpack to.
const LARGEST_IMAGE: u64 = 1 << 30;

/// Arguments of `paravane runner`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP, override_usage = "paravane runner [OPTIONS OF run... --] IMAGE [ARGUMENTS]...")]
pub(super) struct RunnerArgs {
    /// Options of `run` that end with --, the image, and arguments to `run` or to the tests
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "IMAGE")]
    words: Vec<OsString>,
}

impl RunnerArgs {
    /// The command line of `run` that boots the image, unless that is a test image.
    pub(super) fn as_run(&self) -> Option<Vec<OsString>> {
        let (options, image, arguments) = self.parts();
        if image.is_some_and(|image| is_test_image(Path::new(image))) {
            return None;
        }
        let run = ["paravane", "run"].map(OsString::from);
        let words = options.iter().chain(image).chain(arguments).cloned();
        Some(run.into_iter().chain(words).collect())
    }

    fn parts(&self) -> (&[OsString], Option<&OsString>, &[OsString]) {
        let dashes = self.words.iter().position(|word| word == "--");
        let has_options = self.words.first().is_some_and(|word| word.as_encoded_bytes().starts_with(b"-"));
        let (options, rest) = match dashes {
            Some(dashes) if has_options => (&self.words[..dashes], &self.words[dashes + 1..]),
            _ => (&self.words[..0], &self.words[..]),
        };
        (options, rest.first(), rest.get(1..).unwrap_or_default())
    }
}

fn list(image: &Path) -> anyhow::Result<Option<Vec<GuestTest>>> {
    let file = input_file::image(image, LARGEST_IMAGE)?;
    Ok(tests(Image::parse_within(&file, LARGEST_IMAGE)?.elf()))
}

/// What is no file, or cannot be read, is left to `run`, which says what is wrong with it.
fn is_test_image(path: &Path) -> bool {
    path.is_file() && matches!(list(path), Ok(Some(_)))
}

/// Runs the tests of a test image; the exit status of the process.
pub(super) fn run(args: &RunnerArgs) -> anyhow::Result<u8> {
    let (options, image, arguments) = args.parts();
    let image = image.context("no image")?;
    let tests = list(Path::new(image))?.context("not a test image")?;
    let wanted = TestOptions::parse(arguments);
    let (chosen, others): (Vec<_>, Vec<_>) = tests.into_iter().partition(|test| wanted.choose(test));
    if wanted.list {
        chosen.iter().for_each(|test| println!("{}: test", test.name));
        return Ok(0);
    }
    let each = Each::new(options, image, wanted.no_capture)?;
    let mut report = Report::new(chosen.len(), others.len(), wanted.is_quiet(), wanted.show_output);
    each.run(&chosen, wanted.threads(), |test| wanted.skips(test), |test, outcome| report.add(test, outcome));
    Ok(report.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(line: &str) -> (String, String, String) {
        let args = RunnerArgs { words: line.split_whitespace().map(OsString::from).collect() };
        let (options, image, arguments) = args.parts();
        let text = |words: &[OsString]| words.join(" ".as_ref()).into_string().unwrap();
        (text(options), text(image.map_or(&[], std::slice::from_ref)), text(arguments))
    }

    #[test]
    fn options_stand_before_dashes() {
        let owned = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(parts("k"), owned("", "k", ""));
        assert_eq!(parts("k --mem 1G"), owned("", "k", "--mem 1G"));
        assert_eq!(parts("--rng --mem 1G -- k a"), owned("--rng --mem 1G", "k", "a"));
        assert_eq!(parts("k -- a"), owned("", "k", "-- a"), "only options need dashes");
        assert_eq!(parts("--rng --"), owned("--rng", "", ""));
    }
}
