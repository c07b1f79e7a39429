//! The conformance guest: every hypercall, correct or not, answers as `docs/abi.md` says.

use paravane::engine::kvm::{HostKind, host_kind};
use paravane::machine::end::DomainEnd;
use paravane_tests::boot::{Guest, Outcome};
use paravane_tests::guests::CONFORMANCE;
use paravane_tests::verdict::note;

/// Attacks on page tables that must be among the checks, so that none gets lost.
const ATTACKS: [&str; 24] = [
    "tables/l1-table-writable",
    "tables/l4-table-writable",
    "tables/by-address-table-writable",
    "tables/hypervisor-frame",
    "tables/hypervisor-frame-writable",
    "tables/no-frame",
    "tables/l2-large-page",
    "tables/l2-writable-page-as-table",
    "tables/l4-reserved-slot",
    "tables/l4-itself",
    "tables/clear-table",
    "pins/write-access-while-pinned",
    "pins/bad-update-of-a-pinned-table",
    "pins/unpin-twice",
    "grants/map-a-page-table-for-writing",
    "grants/map-read-only-for-writing",
    "grants/map-by-entry-unaligned",
    "grants/map-by-entry-of-no-table",
    "grants/unmap-with-more-rights",
    "grants/unmap-twice",
    "grants/granted-no-page-table",
    "grants/copy-into-a-page-table",
    "grants/transfer-a-page-table",
    "emulation/store-a-table-writable",
];

fn checks(outcome: &Outcome) -> impl Iterator<Item = &str> {
    outcome.text.lines().filter(|line| line.starts_with("test: name=") && line.contains('/'))
}

/// What only some engines can do for CPUID, CR4 and XCR0. Hardware KVM must do it.
fn features(outcome: &Outcome) {
    let lines: Vec<_> = outcome.text.lines().filter(|line| line.starts_with("features: ")).collect();
    let hardware = outcome.engine == "kvm" && host_kind() == HostKind::Hardware;
    if hardware {
        outcome.must_print("features: native-only-registers=0\n");
        outcome.must_print("features: rdfsbase-raises=true\n");
        let xcr0 = |line: &str| {
            let value =
                |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)).map(str::to_owned);
            (value("xcr0-at-first="), value("xcr0=") == value("all="))
        };
        let exact =
            lines.iter().filter(|line| line.contains("xcr0=")).all(|l| xcr0(l) == (Some("0x3".into()), true));
        outcome.must(exact, format_args!("should have found XCR0 as it was set: {lines:?}"));
    } else {
        note(format_args!("conformance on {}: {lines:?}", outcome.engine));
    }
}

#[test]
fn every_hypercall_answers_as_the_abi_says() {
    for outcome in (Guest { name: "conformance", ..Guest::new(CONFORMANCE) }).boot() {
        let failed: Vec<_> = checks(&outcome).filter(|line| !line.contains(" ok=true ")).collect();
        outcome.must(failed.is_empty(), format_args!("was answered otherwise: {failed:#?}"));
        let run = checks(&outcome).count();
        outcome.must_end(&DomainEnd::PowerOff);
        outcome.must_print(&format!("test: name=conformance ok=true run={run} failed=0"));
        outcome.must_print(&format!("\n{}\n", "0123456789".repeat(300)));
        for attack in ATTACKS {
            outcome.must_print(&format!("test: name={attack} ok=true "));
        }
        features(&outcome);
        let native = outcome.report.engine.native_selectors;
        let whose = if native { "guest" } else { "host" };
        outcome.must_print(&format!("\nsegments: the processor runs on the {whose}'s descriptor table\n"));
        let hardware = outcome.engine == "kvm" && host_kind() == HostKind::Hardware;
        outcome.must(
            native == hardware,
            "runs on the guest's table where KVM has hardware support, and only there",
        );
        note(format_args!("conformance: {run} checks on {}, all right", outcome.engine));
    }
}
