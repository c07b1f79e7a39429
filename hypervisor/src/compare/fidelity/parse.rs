//! The guest's lines: `fidelity NAME: begin`, `fidelity NAME: machine=... here=... VERDICT`, `fidelity: done`.

use super::{Row, Verdict};
use crate::compare::outcome::printable;

/// What is said of one instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) verdict: Verdict,
    pub(super) machine: String,
    pub(super) here: String,
}

/// What a guest said before it ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lines {
    /// By row, each once.
    pub(super) answers: Vec<(&'static str, Said)>,
    /// The row that was begun and not answered, if the guest ended in one.
    pub(super) begun: Option<&'static str>,
    /// Whether it came to its end.
    pub(super) done: bool,
}

/// Reads a guest's console output; a line of ours that makes no sense is an error.
pub(super) fn parse(console: &str) -> Result<Lines, String> {
    let mut lines = Lines::default();
    for line in console.lines().map(str::trim) {
        if line == "fidelity: done" {
            lines.done = true;
        } else if let Some((name, rest)) =
            line.strip_prefix("fidelity ").and_then(|rest| rest.split_once(": "))
        {
            let bad = || format!("the guest printed a line that makes no sense: {}", printable(line));
            let row = Row::named(name).ok_or_else(bad)?.name;
            if rest == "begin" {
                lines.begun = Some(row);
                continue;
            }
            let said = answer(rest).ok_or_else(bad)?;
            if lines.answers.iter().any(|(known, _)| *known == row) {
                return Err(format!("the guest answered twice for {row}"));
            }
            lines.answers.push((row, said));
            lines.begun = None;
        }
    }
    Ok(lines)
}

/// `machine=TOKEN here=TOKEN VERDICT`
fn answer(text: &str) -> Option<Said> {
    let mut words = text.split_whitespace();
    let machine = printable(words.next()?.strip_prefix("machine=")?);
    let here = printable(words.next()?.strip_prefix("here=")?);
    let verdict = match words.next()? {
        "right" => Verdict::Right,
        "wrong" => Verdict::Wrong,
        "trapped" => Verdict::Trapped,
        _ => return None,
    };
    words.next().is_none().then_some(Said { verdict, machine, here })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compare::fidelity::ROWS;

    #[test]
    fn what_a_guest_says() {
        let console = "hello\r\nfidelity popf: begin\r\nfidelity popf: machine=IF-cleared here=IF-set wrong\r\n\
                       fidelity sgdt: begin\r\n";
        let lines = parse(console).unwrap();
        let said =
            Said { verdict: Verdict::Wrong, machine: "IF-cleared".to_owned(), here: "IF-set".to_owned() };
        assert_eq!(lines.answers, [("popf", said)]);
        assert_eq!((lines.begun, lines.done), (Some("sgdt"), false));
        assert!(parse("fidelity: done\n").unwrap().done);
    }

    #[test]
    fn nonsense_is_not_overlooked() {
        for line in [
            "fidelity hlt: begin",
            "fidelity popf: machine=a here=b right indeed",
            "fidelity popf: machine=a here=b good",
            "fidelity popf: here=b machine=a right",
            "fidelity popf: machine=a here=b right\nfidelity popf: machine=a here=b right",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_output_is_answered(console in "(fidelity |popf|: |begin|machine=|here=|right|done|x|\\n|\\PC){0,40}") {
            if let Ok(lines) = parse(&console) {
                prop_assert!(lines.answers.len() <= ROWS.len());
            }
        }
    }
}
