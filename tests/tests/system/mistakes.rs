//! The mistakes of a kernel's author, and that the end of the guest names the mistake, the function and the remedy.

use paravane::launch::EngineChoice;
use paravane::machine::end::DomainEnd;
use paravane_tests::boot::{Guest, Outcome, PATIENCE};
use paravane_tests::guests::{ENDINGS, HELLO_HIGH};
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
fn instructions_of_a_kernel_that_owns_the_machine() {
    for (name, function, instruction, instead) in [
        ("cli", "disable_interrupts", "`cli`", "event::disable"),
        ("hlt", "halt", "`hlt`", "event::block"),
        ("out", "write_to_a_port", "`out dx,al`", "console"),
    ] {
        mistake(name, &["last exception: #GP", function, instruction, "instead: ", instead, "mistakes.rs:"]);
    }
}

#[test]
fn a_table_that_is_mapped_writable() {
    mistake(
        "table-mapped-writable",
        &[
            "refused with EBUSY: machine frame 0x",
            "is a page table (level 4) (linked, or used by a vCPU, once) (pinned), and cannot be written to, or mapped \
             writable, until it is unpinned and nothing links it",
            "SDK: paging",
            "mapped read-only at 0x40",
            "map_a_table_writable",
            "mistakes.rs:",
        ],
    );
    mistake(
        "store-to-a-table",
        &[
            "the page does not allow it",
            "the store went to a page table: machine frame 0x",
            "store_to_a_table",
        ],
    );
}

#[test]
fn a_table_that_is_freed_in_use() {
    mistake(
        "table-freed-in-use",
        &[
            "refused with EBUSY: machine frame 0x",
            "is a page table (level 4) (linked, or used by a vCPU, once), and cannot be",
            "free_a_table_in_use",
        ],
    );
}

#[test]
fn data_that_becomes_a_table() {
    mistake(
        "data-as-table",
        &[
            "refused with EINVAL: machine frame 0x",
            "is memory (mapped writable once), and cannot be a page table (level 3) until nothing maps it writable",
            "is mapped writable at 0x40",
            "take_data_for_a_table",
        ],
    );
    mistake(
        "no-table",
        &["refused with EINVAL: no page table (level 1) covers 0x123456789000", "link one first"],
    );
}

#[test]
fn a_heap_that_is_exhausted() {
    mistake(
        "heap-exhausted",
        &["memory allocation of 4096 bytes failed", "exhaust_the_heap", "its heap is exhausted", "--mem"],
    );
}

/// Before the guest starts: the error is the whole message.
#[test]
fn an_image_that_does_not_fit() {
    let refused = |guest: &Guest<'_>, engine| match guest.boot_on(engine) {
        Ok(outcome) => broken_product(format_args!("the guest should have been refused\n{outcome}")),
        Err(error) => error.to_string(),
    };
    let small = Guest { name: "endings", mem_bytes: 1 << 20, ..Guest::new(ENDINGS) };
    let high = Guest { name: "hello-high", ..Guest::new(HELLO_HIGH) };
    for &engine in engines() {
        let why = refused(&small, engine);
        assert!(why.starts_with("endings: ") && why.contains("raise --mem to "), "{why}");
    }
    let why = refused(&high, EngineChoice::Process);
    assert!(
        why.starts_with("hello-high: ") && why.contains("VIRT_BASE 0x40000000 works everywhere"),
        "{why}"
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
