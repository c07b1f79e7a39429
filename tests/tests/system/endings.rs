//! How guests end, intentionally or not, and that the host survives it.

use std::time::Duration;

use paravane::build::BuildError;
use paravane::launch::{EngineChoice, RunError};
use paravane::machine::end::DomainEnd;
use paravane_tests::boot::{Guest, Outcome, PATIENCE};
use paravane_tests::guests::{ENDINGS, HELLO, HELLO_HIGH};
use paravane_tests::images::{Kind, kernel, kernel_at};
use paravane_tests::machine::engines;
use paravane_tests::verdict::broken_product;

use crate::reference::BUILDS;

/// Long enough for a guest to reach the point where it hangs.
pub const HANG: Duration = Duration::from_millis(500);
/// The same for a guest that gets further on a busy host.
const LONG_HANG: Duration = Duration::from_secs(20);

/// Checks that the host survived: another guest in the same process runs as well as the first.
fn host_is_alive() {
    for outcome in Guest::new(HELLO).boot() {
        outcome.must_end(&DomainEnd::PowerOff).must_print("hello from 0x40000000");
    }
}

/// The outcome of the guest `endings` with `test=name`.
fn ending(name: &str, deadline: Duration) -> Vec<Outcome> {
    let cmdline = format!("test={name}");
    let boot =
        |deadline| Guest { name: "endings", cmdline: &cmdline, deadline, ..Guest::new(ENDINGS) }.boot();
    let first_line = format!("test: name={name} begins\n");
    let begins = |outcome: &Outcome| outcome.text.starts_with(&first_line);
    let mut outcomes = boot(deadline);
    if deadline == HANG && !outcomes.iter().all(begins) {
        outcomes = boot(LONG_HANG);
    }
    for outcome in &outcomes {
        outcome.must(begins(outcome), "should have got where it ends");
    }
    host_is_alive();
    outcomes
}

/// The outcomes of both builds of the reference guest with `test=name`.
fn reference(name: &str, deadline: Duration) -> Vec<Outcome> {
    let cmdline = format!("test={name}");
    let boot = |(name, image): (&'static str, &'static [u8])| {
        Guest { name, cmdline: &cmdline, deadline, ..Guest::new(image) }.boot()
    };
    let outcomes = BUILDS.into_iter().flat_map(boot).collect();
    host_is_alive();
    outcomes
}

#[test]
fn a_kernel_in_the_lower_half_boots() {
    for outcome in (Guest { cmdline: "a b=c", ..Guest::new(HELLO) }).boot() {
        outcome.must_end(&DomainEnd::PowerOff);
        outcome.must(outcome.text == "hello from 0x40000000: a b=c\n", "should have printed one line");
    }
}

#[test]
fn a_kernel_in_the_upper_half_boots_where_there_is_one() {
    for &engine in engines() {
        let guest = Guest { name: "hello-high", ..Guest::new(HELLO_HIGH) };
        match guest.boot_on(engine) {
            Ok(outcome) => {
                outcome.must(outcome.report.engine.upper_half, "should have been refused");
                outcome.must_end(&DomainEnd::PowerOff).must_print("hello from 0xffffffff80000000: \n");
            }
            Err(RunError::Build { error: BuildError::VirtualRange { .. }, .. })
                if engine == EngineChoice::Process => {}
            Err(error) => broken_product(format_args!("on {engine:?}: {error}")),
        }
        host_is_alive();
    }
}

/// Linked as kernels of operating-systems courses are, and GRUB.
#[test]
fn a_kernel_at_1_mib_with_virt_base_0_runs_on_every_engine() {
    for kind in [Kind::Pv, Kind::Bare] {
        let code: &[u8] = if kind == Kind::Pv { &shutdown(0) } else { &POWER_OFF };
        for outcome in Guest::new(kernel_at(kind, 0, 0x10_0000, code)).boot() {
            outcome.must_end(&DomainEnd::PowerOff);
        }
    }
}

/// At addresses below those that a process may map, and at those that the process engine keeps for itself.
#[test]
fn a_kernel_runs_where_it_is_linked_or_is_refused_before_it_starts() {
    for (virt_base, load) in
        [(0, 0), (0, 0xf000), (0x7e00_0000_0000, 0x10_0000), (0x7dff_fff0_0000, 0x10_0000)]
    {
        for &engine in engines() {
            let guest = Guest::new(kernel_at(Kind::Pv, virt_base, load, &shutdown(0)));
            match guest.boot_on(engine) {
                Ok(outcome) => {
                    outcome.must_end(&DomainEnd::PowerOff);
                }
                Err(RunError::Build { error: BuildError::VirtualRange { .. }, .. })
                    if engine == EngineChoice::Process => {}
                Err(error) => broken_product(format_args!("{virt_base:#x} on {engine:?}: {error}")),
            }
        }
    }
}

/// For a kernel that the process engine cannot map, `auto` takes KVM where it is available.
#[test]
fn auto_takes_the_engine_that_can_map_the_kernel() {
    if !engines().contains(&EngineChoice::Kvm) {
        return paravane_tests::verdict::skip("kvm", "auto has the process engine only");
    }
    for virt_base in [0x7e00_0000_0000, 0x7dff_fff0_0000, 0xffff_ffff_8000_0000] {
        let guest = Guest::new(kernel_at(Kind::Pv, virt_base, 0x10_0000, &shutdown(0)));
        match guest.boot_on(EngineChoice::Auto) {
            Ok(outcome) => {
                outcome.must_end(&DomainEnd::PowerOff);
                outcome.must(outcome.engine == "kvm", "should have run on KVM");
            }
            Err(error) => broken_product(format_args!("{virt_base:#x}: {error}")),
        }
    }
}

#[test]
fn a_guest_ends_as_it_asks_to() {
    let wanted = [
        ("poweroff", DomainEnd::PowerOff),
        ("reboot", DomainEnd::Reboot),
        ("crash", DomainEnd::GuestCrash),
        ("panic", DomainEnd::GuestCrash),
        ("unhandled-fault", DomainEnd::GuestCrash),
    ];
    for (name, end) in wanted {
        for outcome in ending(name, PATIENCE) {
            outcome.must_end(&end);
        }
    }
}

#[test]
fn a_panic_says_what_and_where() {
    for outcome in ending("panic", PATIENCE) {
        outcome.must_print("\npanic: as asked at tests/guests/src/endings.rs:");
    }
    for outcome in ending("unhandled-fault", PATIENCE) {
        outcome.must_print("panic: unhandled page fault at 0x7ffffffff000, error code 0x0, rip 0x");
    }
    for outcome in reference("panic", PATIENCE) {
        outcome.must_end(&DomainEnd::GuestCrash).must_print("panic: asked for by test=panic at ");
    }
    for outcome in reference("bad-write", PATIENCE) {
        outcome.must_end(&DomainEnd::GuestCrash).must_print("panic: ");
    }
}

#[test]
fn a_guest_that_cannot_go_on_dies_alone_with_a_reason() {
    let stuck = ["triple-fault", "stack-overflow", "bad-stack", "undefined"];
    let outcomes = stuck.iter().flat_map(|name| ending(name, PATIENCE)).chain(reference("triple", PATIENCE));
    for outcome in outcomes {
        let why = outcome.must_be_killed();
        outcome.must(
            why.contains("rip 0x") && !why.contains('\n'),
            "should have died with one line that says where",
        );
    }
}

#[test]
fn a_guest_that_never_ends_can_be_ended() {
    let endless = ["loop", "loop-masked", "block"];
    let outcomes = endless.iter().flat_map(|name| ending(name, HANG)).chain(reference("spin", HANG));
    for outcome in outcomes {
        outcome.must_end(&DomainEnd::Interrupted);
    }
}

/// Code that makes `SCHEDOP_shutdown` with `reason`.
fn shutdown(reason: u8) -> [u8; 18] {
    // mov eax, sched_op; mov edi, SCHEDOP_shutdown; push reason; mov rsi, rsp; syscall; hlt
    [0xb8, 29, 0, 0, 0, 0xbf, 2, 0, 0, 0, 0x6a, reason, 0x48, 0x89, 0xe6, 0x0f, 0x05, 0xf4]
}

#[test]
fn every_reason_to_shut_down_is_told_apart() {
    // public/sched.h
    let reasons = [
        (0, DomainEnd::PowerOff),
        (1, DomainEnd::Reboot),
        (2, DomainEnd::Suspend),
        (3, DomainEnd::GuestCrash),
        (4, DomainEnd::Watchdog),
    ];
    for (reason, end) in reasons {
        for outcome in Guest::new(kernel(Kind::Pv, &shutdown(reason))).boot() {
            outcome.must_end(&end);
        }
    }
}

/// mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt
const POWER_OFF: [u8; 11] = [0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4];

#[test]
fn a_pc_is_switched_off_reset_and_told_of_a_crash() {
    let wanted: [(&[u8], DomainEnd); 3] = [
        (&POWER_OFF, DomainEnd::PowerOff),
        // mov al, 0xfe; out 0x64, al; hlt
        (&[0xb0, 0xfe, 0xe6, 0x64, 0xf4], DomainEnd::Reboot),
        // mov al, 3; out 0xf4, al; hlt
        (&[0xb0, 3, 0xe6, 0xf4, 0xf4], DomainEnd::GuestCrash),
    ];
    for (code, end) in wanted {
        for outcome in Guest::new(kernel(Kind::Bare, code)).boot() {
            outcome.must_end(&end);
        }
    }
}

#[test]
fn a_pc_that_halts_for_ever_is_ended() {
    for outcome in (Guest { deadline: HANG, ..Guest::new(kernel(Kind::Bare, &[0xfa, 0xf4])) }).boot() {
        outcome.must_be_killed();
    }
}

#[test]
fn user_mode_without_tables_is_the_end() {
    // push 0xe02b; push rsp; push 0x202; push 0xe033; push rsp; then flags, rcx, r11, rax: push 0, four times;
    // mov eax, iret; syscall; hlt
    let code = [
        0x68, 0x2b, 0xe0, 0, 0, 0x54, 0x68, 0x02, 0x02, 0, 0, 0x68, 0x33, 0xe0, 0, 0, 0x54, 0x6a, 0, 0x6a, 0,
        0x6a, 0, 0x6a, 0, 0xb8, 23, 0, 0, 0, 0x0f, 0x05, 0xf4,
    ];
    for outcome in Guest::new(kernel(Kind::Pv, &code)).boot() {
        let why = outcome.must_be_killed();
        outcome.must(why.contains("user mode"), "should have died for want of user tables");
    }
}

#[test]
fn a_watchdog_that_is_not_fed_bites() {
    // mov eax, sched_op; mov edi, SCHEDOP_watchdog; mov rcx, 1 << 32: timeout 1 s, id 0; push rcx; mov rsi, rsp;
    // syscall; jmp to itself
    let code = [
        0xb8, 29, 0, 0, 0, 0xbf, 6, 0, 0, 0, 0x48, 0xb9, 0, 0, 0, 0, 1, 0, 0, 0, 0x51, 0x48, 0x89, 0xe6,
        0x0f, 0x05, 0xeb, 0xfe,
    ];
    for outcome in Guest::new(kernel(Kind::Pv, &code)).boot() {
        outcome.must_end(&DomainEnd::Watchdog);
    }
}
