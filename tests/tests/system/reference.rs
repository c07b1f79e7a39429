//! Both builds of the reference guest: they boot, check their machine, and converse on the console.

use paravane::image::GuestKind;
use paravane::image::builtin::{BARE, PV};
use paravane::launch::{EngineChoice, RunError};
use paravane::machine::end::DomainEnd;
use paravane::technique::TECHNIQUES;
use paravane_tests::boot::Guest;

/// Both builds of the reference guest, with the names of their machines.
pub const BUILDS: [(&str, &[u8]); 2] = [("pv", PV), ("bare", BARE)];

/// Each technique runs the reference guest when it is asked for by name.
#[test]
fn every_technique_runs_its_guest() {
    for technique in &TECHNIQUES {
        let guest = Guest { technique: Some(technique), ..Guest::new(technique.builtin()) };
        let machine = match technique.runs {
            GuestKind::Pv => "pv",
            GuestKind::Bare => "bare",
        };
        for outcome in (Guest { input: b"halt\n", ..guest }).boot() {
            outcome.must_end(&DomainEnd::PowerOff).must_print(&format!("paravane guest ({machine})"));
        }
    }
}

/// A technique that is named for another kind of image is refused, and what would do is named.
#[test]
fn a_technique_that_cannot_run_the_image_is_refused() {
    for technique in &TECHNIQUES {
        for other in GuestKind::ALL.into_iter().filter(|kind| *kind != technique.runs) {
            let guest = Guest { technique: Some(technique), ..Guest::new(other.builtin()) };
            match guest.boot_on(EngineChoice::Auto) {
                Err(error @ RunError::Technique { .. }) => {
                    let text = error.to_string();
                    assert!(text.contains(technique.name) && text.contains("use --technique"), "{text}");
                }
                other => panic!("{}: {other:?}", technique.name),
            }
        }
    }
}

fn guests() -> [Guest<'static>; 2] {
    BUILDS.map(|(name, image)| Guest { name, ..Guest::new(image) })
}

/// Runs one of the guest's tests of its machine (`guest-kernel/src/selftest/mod.rs`).
fn selftest(name: &str, input: &[u8]) {
    let cmdline = format!("test={name}");
    for guest in guests() {
        for outcome in (Guest { cmdline: &cmdline, input, ..guest }).boot() {
            outcome.must_end(&DomainEnd::PowerOff).must_print(&format!("test: name={name} ok=true"));
        }
    }
}

#[test]
fn it_says_what_it_runs_on() {
    for guest in guests() {
        let banner = format!("paravane guest ({}) {}: 48 MiB", guest.name, env!("CARGO_PKG_VERSION"));
        for outcome in (Guest { mem_bytes: 48 << 20, input: b"halt\n", ..guest }).boot() {
            let begins = outcome.text.starts_with(&banner);
            outcome.must(begins, format_args!("should have said {banner:?} first"));
            outcome.must_end(&DomainEnd::PowerOff);
        }
    }
}

#[test]
fn mappings_mean_what_they_say() {
    selftest("paging", b"");
}

#[test]
fn timers_expire_in_order_and_none_early() {
    selftest("timer", b"");
}

#[test]
fn registers_survive_interrupts() {
    selftest("registers", b"");
}

#[test]
fn what_is_typed_arrives_in_order() {
    // More input than the console ring (1024 bytes, public/io/console.h) or a UART's FIFO holds.
    let lines: Vec<String> = (0..100).map(|i| format!("line {i} of a hundred")).collect();
    let input = format!("{}\nquit\n", lines.join("\n"));
    for guest in guests() {
        for outcome in (Guest { cmdline: "test=echo", input: input.as_bytes(), ..guest }).boot() {
            let said: Vec<&str> =
                outcome.text.lines().filter_map(|line| line.trim_end().strip_prefix("echo: ")).collect();
            outcome.must(said == lines, "lost or changed what was typed");
            outcome.must_end(&DomainEnd::PowerOff).must_print("test: name=echo ok=true");
        }
    }
}

#[test]
fn its_shell_converses() {
    let input = b"help\nmem\nnonsense\nbench null-call\nhalt\n";
    for guest in guests() {
        for outcome in (Guest { input, ..guest }).boot() {
            outcome.must_end(&DomainEnd::PowerOff);
            for answer in [
                "bench [NAME|all]     run a workload",
                "memory    32768 KiB",
                "nonsense: no such command",
                "bench: name=null-call ops=1000 ok=true",
            ] {
                outcome.must_print(answer);
            }
        }
    }
}

#[test]
fn the_shell_ends_as_it_is_told_to() {
    let wanted = [
        (&b"halt\n"[..], DomainEnd::PowerOff),
        (b"\x04", DomainEnd::PowerOff),
        (b"reboot\n", DomainEnd::Reboot),
        (b"panic\n", DomainEnd::GuestCrash),
    ];
    for (input, end) in wanted {
        for guest in guests() {
            for outcome in (Guest { input, ..guest }).boot() {
                outcome.must_end(&end);
            }
        }
    }
}

#[test]
fn it_lives_in_little_memory_and_in_much() {
    for mem_bytes in [8 << 20, 512 << 20] {
        for guest in guests() {
            let size = format!("memory {:>8} KiB", mem_bytes >> 10);
            for outcome in (Guest { mem_bytes, input: b"mem\nhalt\n", ..guest }).boot() {
                outcome.must_end(&DomainEnd::PowerOff).must_print(&size);
            }
        }
    }
}
