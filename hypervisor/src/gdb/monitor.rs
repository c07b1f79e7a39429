//! The commands that gdb's `monitor` passes on.

use std::fmt::Write;

use super::session::Over;
use super::target::Guest;
use crate::monitor::inspect::Question;

const HELP: &str = "\
monitor vcpus        what each virtual CPU is doing
monitor exits [N]    the last N exits of each virtual CPU (16; at most 64), the newest first
monitor events       the event channels that are in use, and which are pending or masked
monitor p2m PFN      the machine frame behind a pseudo-physical frame
monitor frame MFN    what a machine frame is, and who uses it as what
Numbers may be decimal, or hexadecimal with 0x. A frame's number is its address without the last three digits.
";

/// What a user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Help,
    Vcpus,
    Exits(usize),
    Ask(Question),
}

/// The exits that are shown if nothing else is asked for.
const FEW: usize = 16;

fn parse(command: &str) -> Option<Request> {
    let mut words = command.split_whitespace();
    let (name, argument) = (words.next().unwrap_or("help"), words.next());
    if words.next().is_some() {
        return None;
    }
    let number = || argument.and_then(number);
    match (name, argument) {
        ("help", None) => Some(Request::Help),
        ("vcpus", None) => Some(Request::Vcpus),
        ("events", None) => Some(Request::Ask(Question::Events)),
        ("exits", None) => Some(Request::Exits(FEW)),
        ("exits", Some(_)) => Some(Request::Exits(usize::try_from(number()?).ok()?)),
        ("p2m", _) => Some(Request::Ask(Question::P2m(number()?))),
        ("frame", _) => Some(Request::Ask(Question::Frame(number()?))),
        _ => None,
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The answer, in lines.
pub(super) fn answer(guest: &Guest, command: &str) -> Result<String, Over> {
    match parse(command) {
        None => Ok(format!("\"{}\" is no command here.\n{HELP}", command.trim().escape_debug())),
        Some(Request::Help) => Ok(HELP.to_owned()),
        Some(Request::Ask(question)) => ask(guest, 0, question),
        Some(Request::Vcpus) => each(guest, |vcpu| ask(guest, vcpu, Question::Doing)),
        Some(Request::Exits(count)) => each(guest, |vcpu| exits(guest, vcpu, count)),
    }
}

fn each(guest: &Guest, one: impl Fn(usize) -> Result<String, Over>) -> Result<String, Over> {
    (0..guest.session.vcpus()).try_fold(String::new(), |all, vcpu| {
        let text = one(vcpu)?;
        let newline = if text.ends_with('\n') { "" } else { "\n" };
        Ok(all + &format!("vcpu{vcpu} {text}{newline}"))
    })
}

fn ask(guest: &Guest, vcpu: usize, question: Question) -> Result<String, Over> {
    guest.ask(vcpu, move |standing| match standing.runner.inspect() {
        Some(inspect) => inspect.answer(question),
        None => "cannot be looked at\n".to_owned(),
    })
}

fn exits(guest: &Guest, vcpu: usize, count: usize) -> Result<String, Over> {
    guest.ask(vcpu, move |standing| {
        let mut text = "\n".to_owned();
        for past in standing.recent.backwards().take(count) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {:#018x}  {}", past.rip, past.cause);
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        assert_eq!(parse(""), Some(Request::Help));
        assert_eq!(parse("exits 0x10"), Some(Request::Exits(16)));
        assert_eq!(parse(" p2m  17 "), Some(Request::Ask(Question::P2m(17))));
        assert_eq!(parse("frame"), None);
        assert_eq!(parse("frame 1 2"), None);
        assert_eq!(parse("p2m 0xg"), None);
        assert_eq!(parse("vcpus 1"), None);
        for line in HELP.lines().filter_map(|line| line.strip_prefix("monitor ")) {
            let name = line.split_whitespace().next().unwrap();
            assert!(parse(name).or_else(|| parse(&format!("{name} 1"))).is_some(), "{name}");
        }
    }
}
