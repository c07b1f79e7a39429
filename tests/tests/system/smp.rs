//! Several vCPUs, by the SDK's means.

use paravane::engine::NoCpu;
use paravane::launch::RunError;
use paravane::machine::end::DomainEnd;
use paravane_tests::boot::Guest;
use paravane_tests::guests::SMP;
use paravane_tests::machine::engines;
use paravane_tests::verdict::{broken_product, skip};

/// Boots the guest with so many vCPUs on every engine.
fn with(vcpus: u32) {
    let cmdline = format!("vcpus={vcpus}");
    let guest = Guest { name: "smp", cmdline: &cmdline, vcpus, ..Guest::new(SMP) };
    for &engine in engines() {
        let outcome = match guest.boot_on(engine) {
            Ok(outcome) => outcome,
            Err(RunError::Cpu(NoCpu::Absent { .. })) if vcpus > 1 => {
                skip("several-vcpus", format_args!("the {} engine has one vCPU", engine.name()));
                continue;
            }
            Err(error) => broken_product(format_args!("{vcpus} vCPUs on {engine:?}: {error}")),
        };
        outcome.must_end(&DomainEnd::PowerOff).must_print("test: name=smp ok=true");
        outcome.must(!outcome.text.contains("ok=false"), "should have passed every check");
    }
}

#[test]
fn one_vcpu_is_alone() {
    with(1);
}

#[test]
fn two_vcpus_interrupt_each_other_and_share_memory() {
    with(2);
}

#[test]
fn four_vcpus_on_fewer_processors() {
    with(4);
}

#[test]
fn as_many_vcpus_as_there_can_be() {
    with(64);
}
