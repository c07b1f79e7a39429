//! The one line by which a guest reports a workload's result. Guest output: not to be trusted.

use std::collections::BTreeMap;

/// The line starts with this.
const PREFIX: &str = "bench:";
/// What the keys begin with that say how often and why the guest flushed its queue of hypercalls.
const FLUSH: &str = "flush-";
/// How many `key=value` pairs of its own a guest may add.
const MAX_DETAILS: usize = 32;

/// What a guest says about its workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How many operations it did.
    pub ops: u64,
    /// Whether it found its own results right.
    pub ok: bool,
    /// How often it flushed its queue of hypercalls, by reason; empty if it has none.
    pub flushes: BTreeMap<String, u64>,
    /// Whatever else it said; the reason of a failure, `why`, takes the rest of the line.
    pub details: BTreeMap<String, String>,
}

/// Why a run has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutcomeError {
    /// No line.
    #[error("the guest printed no `bench:` line; does its image know this workload?")]
    Missing,
    /// More than one line.
    #[error("the guest printed {0} `bench:` lines where one belongs")]
    Several(usize),
    /// A line that does not parse.
    #[error("the guest's `bench:` line lacks a usable `{0}`")]
    Field(&'static str),
    /// A line about something else.
    #[error("the guest ran workload `{0}` instead")]
    Other(String),
    /// Too much on it.
    #[error("the guest's `bench:` line has more than {MAX_DETAILS} details")]
    TooMany,
}

impl Outcome {
    /// Finds and reads the line about `workload` in a guest's console output.
    pub fn parse(console: &str, workload: &str) -> Result<Self, OutcomeError> {
        let mut lines = console.lines().filter_map(|line| line.trim().strip_prefix(PREFIX));
        let line = lines.next().ok_or(OutcomeError::Missing)?;
        match lines.count() {
            0 => Self::parse_line(line, workload),
            more => Err(OutcomeError::Several(more.saturating_add(1))),
        }
    }

    fn parse_line(line: &str, workload: &str) -> Result<Self, OutcomeError> {
        let (mut name, mut ops, mut ok) = (None, None, None::<bool>);
        let (mut flushes, mut details) = (BTreeMap::new(), BTreeMap::new());
        let (line, why) = line.split_once(" why=").map_or((line, None), |(line, why)| (line, Some(why)));
        details.extend(why.map(|why| ("why".to_owned(), printable(why))));
        for (key, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
            match key {
                "name" => name = Some(value),
                "ops" => ops = value.parse().ok(),
                "ok" => ok = value.parse().ok(),
                _ if details.len() + flushes.len() == MAX_DETAILS => return Err(OutcomeError::TooMany),
                _ if let (Some(reason), Ok(n)) = (key.strip_prefix(FLUSH), value.parse()) => {
                    flushes.insert(printable(reason), n);
                }
                _ => drop(details.insert(printable(key), printable(value))),
            }
        }
        match name.ok_or(OutcomeError::Field("name"))? {
            name if name == workload => {}
            other => return Err(OutcomeError::Other(printable(other))),
        }
        let ok = ok.ok_or(OutcomeError::Field("ok"))?;
        // A guest that failed may have done nothing; one that did not fail did something.
        let ops = ops.filter(|n| *n > 0 || !ok).ok_or(OutcomeError::Field("ops"))?;
        Ok(Self { ops, ok, flushes, details })
    }
}

/// Why the guest did not do `workload`, if it says that it lacks something for it: `skip: name=NAME why=REASON`.
pub(super) fn skipped(console: &str, workload: &str) -> Option<String> {
    let mut lines = console.lines().filter_map(|line| line.trim().strip_prefix("skip:"));
    lines.find_map(|line| {
        let (name, why) = line.trim().strip_prefix("name=")?.split_once(" why=")?;
        (name == workload).then(|| printable(why))
    })
}

/// Guest text, fit for a terminal and bounded.
pub(super) fn printable(text: &str) -> String {
    let bounded: String = text.chars().take(200).collect();
    crate::text::printable::printable(&bounded).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_among_others() {
        let console = "hello\r\nbench: name=map-512 ops=512 ok=true ns=3 flush-full=1 flush-a=b\r\nbye\r\n";
        let outcome = Outcome::parse(console, "map-512").unwrap();
        assert_eq!((outcome.ops, outcome.ok), (512, true));
        let details = [("ns", "3"), ("flush-a", "b")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(outcome.details, BTreeMap::from(details));
        assert_eq!(outcome.flushes, BTreeMap::from([("full".to_owned(), 1)]));
    }

    #[test]
    fn a_guest_may_say_why_it_failed() {
        let outcome = Outcome::parse("bench: name=x ops=0 ok=false why=page 3 holds a=7", "x").unwrap();
        assert_eq!(
            (outcome.ops, outcome.ok, outcome.details["why"].as_str()),
            (0, false, "page 3 holds a=7")
        );
    }

    #[test]
    fn a_guest_may_lack_what_it_needs() {
        let console = "hello\r\nskip: name=net-setup why=no-such-device\r\n";
        assert_eq!(skipped(console, "net-setup").as_deref(), Some("no-such-device"));
        assert_eq!(skipped(console, "net"), None);
        assert_eq!(skipped("bench: name=net ops=1 ok=true", "net"), None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let parse = |text| Outcome::parse(text, "x").unwrap_err();
        assert_eq!(parse("nothing here"), OutcomeError::Missing);
        assert_eq!(
            parse("bench: name=x ops=1 ok=true\nbench: name=x ops=1 ok=true"),
            OutcomeError::Several(2)
        );
        assert_eq!(parse("bench: ops=1 ok=true"), OutcomeError::Field("name"));
        assert_eq!(
            parse("bench: name=y\x1b[2J ops=1 ok=true"),
            OutcomeError::Other(r"y\u{1b}[2J".to_owned())
        );
        assert_eq!(parse("bench: name=x ops=many ok=true"), OutcomeError::Field("ops"));
        assert_eq!(parse("bench: name=x ops=0 ok=true"), OutcomeError::Field("ops"));
        assert_eq!(parse("bench: name=x ops=1"), OutcomeError::Field("ok"));
        assert_eq!(parse("bench: name=x ops=1 ok=yes"), OutcomeError::Field("ok"));
        let flood: String = (0..40).map(|i| format!(" k{i}=v")).collect();
        assert_eq!(parse(&format!("bench: name=x{flood} ops=1 ok=true")), OutcomeError::TooMany);
    }

    proptest! {
        #[test]
        fn any_output_is_answered(console in "(bench:|name=|ops=|ok=|x|true|[0-9]{1,30}| |\\n|\\PC){0,40}") {
            if let Ok(outcome) = Outcome::parse(&console, "x") {
                prop_assert!((outcome.ops > 0 || !outcome.ok) && console.contains("name=x"));
            }
        }
    }
}
