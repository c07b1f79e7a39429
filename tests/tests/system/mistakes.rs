//! The mistakes of a kernel's author, and that the end of the guest names the mistake, the function and the remedy.

use paravane::machine::end::DomainEnd;
use paravane_tests::boot::{Guest, Outcome, PATIENCE};
use paravane_tests::guests::ENDINGS;
use paravane_tests::machine::engines;
use paravane_tests::verdict::broken_product;

use crate::endings::HANG;

/// The guest's end in the words of the program: the line, and what follows it.
fn told(outcome: &Outcome) -> String {
    let autopsy = outcome.report.autopsy.as_ref().map(ToString::to_string).unwrap_or_default();
    format!("{}\n{autopsy}", outcome.end)
}

/// Makes the mistake on every engine; each part must be in what the guest printed or in what the host says.
fn mistake(name: &str, parts: &[&str]) {
    let hangs = ["no-event-handler", "events-masked"].contains(&name);
    let deadline = if hangs { HANG } else { PATIENCE };
    let cmdline = format!("test={name}");
    for outcome in (Guest { name: "endings", cmdline: &cmdline, deadline, ..Guest::new(ENDINGS) }).boot() {
        let told = told(&outcome);
        if hangs {
            outcome.must_end(&DomainEnd::Interrupted);
        }
        for part in parts {
            let said = told.contains(part) || outcome.text.contains(part);
            outcome.must(said, format_args!("should have been explained by {part:?}:\n{told}"));
        }
    }
}

#[test]
fn a_null_pointer() {
    mistake(
        "null",
        &[
            "panic: unhandled page fault at 0x8",
            "last exception: #PF, page fault at 0x8, read",
            "null_dereference",
        ],
    );
    mistake(
        "null-without-handlers",
        &["the guest has no handler for vector 14", "null_dereference", "mistakes.rs:"],
    );
}

#[test]
fn a_stack_that_overflows() {
    for name in ["overflow", "overflow-without-handlers"] {
        mistake(name, &["endless_recursion", "the stack has overflowed", "mistakes.rs:"]);
    }
}

#[test]
fn a_handler_that_faults_itself() {
    mistake("fault-in-the-handler", &["handler_that_faults", "null_dereference", "the stack has overflowed"]);
}

#[test]
fn an_instruction_that_does_not_work() {
    mistake(
        "lgdt",
        &["last exception: #GP", "load_a_descriptor_table", "`lgdt", "instead: trap::install for the IDT"],
    );
}

#[test]
fn events_that_do_not_come() {
    mistake("no-event-handler", &["no handler for events (SDK: event::install)", "wait_without"]);
    mistake(
        "events-masked",
        &[
            "it has masked events",
            "event::enable",
            "(the timer, VIRQ_TIMER) is pending",
            "spin_with_events_masked",
        ],
    );
}

/// What Ctrl-A s says of a guest that hangs is what its end would say.
#[test]
fn a_hang_is_explained_while_it_lasts() {
    let guest = Guest { name: "endings", cmdline: "test=events-masked", ..Guest::new(ENDINGS) };
    let explained = |look: &str| look.contains("VIRQ_TIMER) is pending and was not handled");
    for &engine in engines() {
        let look = guest.look_on(engine, explained).unwrap_or_else(|error| broken_product(error));
        for part in [
            "vCPU 0 is in its kernel:",
            "spin_with_events_masked",
            "it has masked events",
            "(the timer, VIRQ_TIMER) is pending",
        ] {
            if !look.contains(part) {
                broken_product(format_args!("on {engine:?} a look should have shown {part:?}:\n{look}"));
            }
        }
    }
}

#[test]
fn a_panic_within_a_panic() {
    mistake("panic-in-display", &["the guest crashed", "Shy as core::fmt::Display>::fmt", "mistakes.rs:"]);
}
