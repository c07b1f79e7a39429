//! The same bare image by every technique: the same results, the same output, the same end.
//!
//! What differs is what it costs. The counts that a technique promises are checked here as well, as far as they do not
//! depend on time.

use paravane::engine::Irqchip;
use paravane::image::GuestKind;
use paravane::image::builtin::BARE;
use paravane::launch::EngineChoice;
use paravane::ledger::{Cause, Region};
use paravane::machine::end::DomainEnd;
use paravane::technique::{EngineNeed, TECHNIQUES, Technique};
use paravane_tests::boot::{Guest, Outcome, PATIENCE};
use paravane_tests::images::{Kind, kernel};
use paravane_tests::machine::engines_for;
use paravane_tests::machine_soup::{STEPS, machine_soup};
use paravane_tests::soup::servings::Servings;
use paravane_tests::verdict::{broken_product, note};

use crate::endings::HANG;
use crate::workloads::own_traps;

const WORKLOADS: [&str; 5] = ["null-call", "console-4k", "map-512", "address-space", "timer-1000"];

/// Boots `guest` by each technique that runs bare kernels, on each engine that the technique can use.
pub fn boot_by_each(guest: &Guest<'_>) -> Vec<(&'static Technique, Outcome)> {
    let mut outcomes = Vec::new();
    for technique in Technique::of(GuestKind::Bare) {
        let name = format!("{} by {}", guest.name, technique.name);
        let guest = Guest { name: &name, technique: Some(technique), ..guest.clone() };
        outcomes.extend(guest.boot().into_iter().map(|outcome| (technique, outcome)));
    }
    outcomes
}

/// Output without its numbers: times differ from run to run.
fn words(text: &str) -> String {
    let mut in_number = false;
    let masked = text.chars().filter_map(|c| {
        let digit = c.is_ascii_digit();
        let first = digit && !std::mem::replace(&mut in_number, digit);
        in_number = digit;
        if digit { first.then_some('#') } else { Some(c) }
    });
    masked.collect()
}

/// Checks that all ended and printed as the first did.
fn must_agree(outcomes: &[(&Technique, Outcome)], shown: impl Fn(&Outcome) -> String) {
    let Some(((_, first), others)) = outcomes.split_first() else { return };
    for (_, other) in others {
        other.must(other.end == first.end, format_args!("should have ended as here:\n{first}"));
        other.must(shown(other) == shown(first), format_args!("should have printed what is here:\n{first}"));
    }
}

#[test]
fn every_technique_does_the_same_work_with_the_same_results() {
    for workload in WORKLOADS {
        let cmdline = format!("bench={workload}");
        let guest =
            Guest { name: "reference guest", cmdline: &cmdline, mem_bytes: 64 << 20, ..Guest::new(BARE) };
        let outcomes = boot_by_each(&guest);
        let ops: Vec<u64> =
            outcomes.iter().map(|(_, outcome)| outcome.must_have_done(workload).0.ops).collect();
        assert!(ops.windows(2).all(|pair| pair[0] == pair[1]), "{workload}: {ops:?}");
        must_agree(&outcomes, |outcome| words(&outcome.text));
        let taken: Vec<String> = outcomes
            .iter()
            .map(|(technique, o)| {
                format!("{} on {} {}", technique.name, o.engine, own_traps(&o.must_have_done(workload).1))
            })
            .collect();
        note(format_args!("exits of {workload}: {}", taken.join(", ")));
    }
}

#[test]
fn every_technique_passes_the_kernels_own_tests() {
    let input = b"some\nlines\nto echo\nquit\n";
    for test in ["paging", "timer", "registers", "echo"] {
        let cmdline = format!("test={test}");
        let guest = Guest { name: "reference guest", cmdline: &cmdline, input, ..Guest::new(BARE) };
        let outcomes = boot_by_each(&guest);
        for (_, outcome) in &outcomes {
            outcome.must_end(&DomainEnd::PowerOff).must_print(&format!("test: name={test} ok=true"));
        }
        must_agree(&outcomes, |outcome| words(&outcome.text));
    }
}

#[test]
fn a_kernel_ends_the_same_way_by_every_technique() {
    // mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt
    let power_off: &[u8] = &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4];
    let wanted: [(&[u8], DomainEnd); 4] = [
        (power_off, DomainEnd::PowerOff),
        // mov al, 0xfe; out 0x64, al; hlt
        (&[0xb0, 0xfe, 0xe6, 0x64, 0xf4], DomainEnd::Reboot),
        // mov al, 6; mov dx, 0xcf9; out dx, al; hlt
        (&[0xb0, 6, 0x66, 0xba, 0xf9, 0x0c, 0xee, 0xf4], DomainEnd::Reboot),
        // mov al, 3; out 0xf4, al; hlt
        (&[0xb0, 3, 0xe6, 0xf4, 0xf4], DomainEnd::GuestCrash),
    ];
    for (code, end) in wanted {
        let outcomes = boot_by_each(&Guest::new(kernel(Kind::Bare, code)));
        for (_, outcome) in &outcomes {
            outcome.must_end(&end);
        }
    }
    for (cmdline, end) in [("test=panic", DomainEnd::GuestCrash), ("test=bad-write", DomainEnd::GuestCrash)] {
        let guest = Guest { name: "reference guest", cmdline, deadline: PATIENCE, ..Guest::new(BARE) };
        let outcomes = boot_by_each(&guest);
        for (_, outcome) in &outcomes {
            outcome.must_end(&end);
        }
        must_agree(&outcomes, |outcome| words(&outcome.text));
    }
}

/// Bytes through a string instruction: `mov rsi, rip-relative; mov ecx, 5; mov dx, 0x3f8; rep outsb`, then power off.
#[test]
fn string_output_reaches_the_line() {
    let code: &[u8] = &[
        0x48, 0x8d, 0x35, 0x16, 0, 0, 0, 0xb9, 5, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e, 0x66, 0xba,
        0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4, b'h', b'e', b'l', b'l', b'o',
    ];
    for (_, outcome) in boot_by_each(&Guest::new(kernel(Kind::Bare, code))) {
        outcome.must_end(&DomainEnd::PowerOff);
        outcome.must(outcome.text == "hello", "should have printed a word");
    }
}

/// Whatever the words are: one line, and the domain alone.
#[test]
fn a_kernel_that_cannot_go_on_dies_by_every_technique() {
    let triple = Guest { name: "reference guest", cmdline: "test=triple", ..Guest::new(BARE) };
    // cli; hlt
    let halted = Guest { name: "cli; hlt", deadline: HANG, ..Guest::new(kernel(Kind::Bare, &[0xfa, 0xf4])) };
    for (technique, outcome) in boot_by_each(&triple) {
        let why = outcome.must_be_killed();
        outcome.must(
            why.starts_with("triple fault") && !why.contains('\n'),
            "should have died of a triple fault",
        );
        note(format_args!("{}: {why}", technique.name));
    }
    let outcomes = boot_by_each(&halted);
    for (technique, outcome) in &outcomes {
        // With the host kernel's interrupt controllers HLT does not leave it, and it has nothing to say about that.
        let unnoticed = technique.engine == EngineNeed::Ring0(Irqchip::Kernel);
        let wanted = if unnoticed { &DomainEnd::Interrupted } else { &outcomes[0].1.end };
        outcome.must_end(wanted);
    }
    outcomes[0].1.must_be_killed();
}

#[test]
fn a_kernel_that_never_ends_can_be_ended_by_every_technique() {
    // jmp to itself; sti, hlt, and again
    for code in [&[0xeb, 0xfe][..], &[0xfb, 0xf4, 0xeb, 0xfc]] {
        let guest = Guest { name: "endless", deadline: HANG, ..Guest::new(kernel(Kind::Bare, code)) };
        for (_, outcome) in boot_by_each(&guest) {
            outcome.must_end(&DomainEnd::Interrupted);
        }
    }
}

/// What hardware is for: no exit for what a kernel does with its own processor, and one for each access to a device.
#[test]
fn hardware_leaves_the_guest_for_devices_only() {
    let of = |technique: &'static Technique, workload: &str| {
        let cmdline = format!("bench={workload}");
        let guest = Guest { technique: Some(technique), cmdline: &cmdline, ..Guest::new(BARE) };
        let outcomes = Guest { name: technique.name, mem_bytes: 64 << 20, ..guest }.boot();
        outcomes.into_iter().next().map(|outcome| outcome.must_have_done(workload).1)
    };
    let trap = Technique::named("trap").expect("a technique of that name");
    for technique in TECHNIQUES.iter().filter(|t| matches!(t.engine, EngineNeed::Ring0(_))) {
        if !engines_for(technique).contains(&EngineChoice::Kvm) {
            continue;
        }
        for workload in ["null-call", "map-512", "address-space"] {
            let exits = of(technique, workload).map(|region| own_traps(&region));
            if exits != Some(0) {
                broken_product(format_args!("{workload} by {}: {exits:?} exits", technique.name));
            }
        }
        let ports = |region: &Region| {
            let rows =
                region.exits.iter().filter(|row| matches!(row.cause, Cause::PortIn(_) | Cause::PortOut(_)));
            rows.map(|row| row.count).sum::<u64>()
        };
        let [console, trapped] = [technique, trap].map(|by| of(by, "console-4k").as_ref().map(ports));
        if console != trapped {
            broken_product(format_args!("console-4k by {}: {console:?}, not {trapped:?}", technique.name));
        }
    }
}

/// The number of random kernels, by default.
const SEEDS: u64 = 8;

#[test]
fn random_kernels_find_the_same_by_every_technique() {
    let servings = Servings::asked_for(SEEDS);
    let mut boots = 0;
    servings.each(|seed| {
        let name = format!("machine soup of seed {seed}");
        let guest = Guest { name: &name, mem_bytes: 16 << 20, ..Guest::new(machine_soup(seed)) };
        let outcomes = boot_by_each(&guest);
        for (_, outcome) in &outcomes {
            outcome.must_end(&DomainEnd::PowerOff);
            let whole = outcome.text.len() as u64 == 4 * STEPS + 18 && outcome.text.ends_with('\n');
            outcome.must(whole, "should have printed its numbers");
        }
        must_agree(&outcomes, |outcome| outcome.text.clone());
        boots += outcomes.len();
    });
    note(format_args!("machine soup: {boots} boots from seed {} on, in agreement", servings.first));
}
