//! The sensitive instructions that need not trap: the machine's answers, or others, by technique (docs/seventeen.md).

use paravane::image::GuestKind;
use paravane::image::builtin::FIDELITY;
use paravane::launch::EngineChoice;
use paravane::machine::end::DomainEnd;
use paravane::technique::{EngineNeed, TECHNIQUES, Technique};
use paravane_tests::boot::{Guest, Outcome};
use paravane_tests::verdict::{broken_product, skip};

/// The instructions, in the order of the lines.
const INSTRUCTIONS: [&str; 17] = [
    "popf",
    "pushf",
    "sgdt",
    "sidt",
    "sldt",
    "str",
    "smsw",
    "lar",
    "lsl",
    "verr",
    "verw",
    "mov-segment",
    "push-segment",
    "pop-segment",
    "far-transfer",
    "iretq",
    "cpuid",
];

/// What a technique does with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// The kernel runs natively at CPL 3: all of them are wrong. UMIP and CPUID faulting make some trap; then these are
    /// right.
    WrongUnlessTheHostTraps,
    /// Right where another instruction's trap brought a patch, and wrong elsewhere.
    Either,
    /// All are right.
    Right,
}

fn expected(technique: &Technique) -> Expected {
    match technique.name {
        "trap" => Expected::WrongUnlessTheHostTraps,
        "patch" => Expected::Either,
        _ => Expected::Right,
    }
}

/// Those that trap on some hosts.
const HOST_MAY_TRAP: [&str; 6] = ["sgdt", "sidt", "sldt", "smsw", "str", "cpuid"];

/// Those that load what the selector names: where that is privileged, or the kernel's own segment, they are right.
const LOADS_SEGMENTS: [&str; 3] = ["pop-segment", "far-transfer", "iretq"];

/// Name and verdict of each line.
fn verdicts(outcome: &Outcome) -> Vec<(&str, &str)> {
    let lines = outcome.text.lines().filter_map(|line| line.trim_end().strip_prefix("fidelity "));
    let ended = lines.filter(|line| !line.ends_with(": begin"));
    ended.filter_map(|line| Some((line.split_once(':')?.0, line.rsplit_once(' ')?.1))).collect()
}

fn check(technique: &Technique, outcome: &Outcome) {
    let verdicts = verdicts(outcome);
    let names: Vec<&str> = verdicts.iter().map(|(name, _)| *name).collect();
    outcome.must_end(&DomainEnd::PowerOff).must_print("fidelity: done");
    outcome.must(names == INSTRUCTIONS, format_args!("should have printed a line for each: {names:?}"));
    for (name, verdict) in verdicts {
        let right = match expected(technique) {
            Expected::Right => verdict == "right",
            Expected::Either => ["right", "wrong"].contains(&verdict),
            Expected::WrongUnlessTheHostTraps
                if HOST_MAY_TRAP.contains(&name) || LOADS_SEGMENTS.contains(&name) =>
            {
                verdict != "trapped"
            }
            Expected::WrongUnlessTheHostTraps => verdict == "wrong",
        };
        outcome.must(right, format_args!("by {} should not have {name} {verdict}", technique.name));
    }
}

#[test]
fn each_technique_gives_the_answers_that_it_can() {
    for technique in TECHNIQUES.iter().filter(|technique| technique.runs == GuestKind::Bare) {
        if let Err(why) = (technique.available)() {
            skip(technique.name, why);
            continue;
        }
        let guest = Guest { name: technique.name, technique: Some(technique), ..Guest::new(FIDELITY) };
        if technique.engine == EngineNeed::Deprivileged {
            guest.boot().iter().for_each(|outcome| check(technique, outcome));
            continue;
        }
        match guest.boot_on(EngineChoice::Auto) {
            Ok(outcome) => check(technique, &outcome),
            Err(error) => broken_product(format_args!("{}: {error}", technique.name)),
        }
    }
}

/// So that one that ends the domain does not hide the others.
#[test]
fn instructions_can_be_left_out() {
    let guest = Guest { cmdline: "fidelity skip=popf,cpuid", ..Guest::new(FIDELITY) };
    for outcome in guest.boot() {
        outcome.must_end(&DomainEnd::PowerOff);
        let names: Vec<&str> = verdicts(&outcome).iter().map(|(name, _)| *name).collect();
        outcome.must(names == INSTRUCTIONS[1..16], "should have left out the first and the last");
    }
}
