//! Virtio devices from the guest's side: found, set up in one call, used, and missed where they are not there.

use paravane::compare::Needs;
use paravane::device::Device;
use paravane::device::entropy::Entropy;
use paravane::domain::DomainEnd;
use paravane::images::PV;
use paravane::ledger::{Cause, Region};
use paravane_abi::hypercall::PARAVANE_VIRTIO_OP;
use paravane_tests::boot::{Guest, Outcome};

use crate::reference::BUILDS;
use crate::workloads::{count, own_traps};

fn none() -> Vec<Box<dyn Device>> {
    Vec::new()
}

fn entropy() -> Vec<Box<dyn Device>> {
    vec![Box::new(Entropy)]
}

fn network() -> Vec<Box<dyn Device>> {
    Needs::Network.provide()
}

/// The reference guest's paravirtual build with devices, on each engine.
fn boot(cmdline: &str, devices: fn() -> Vec<Box<dyn Device>>) -> Vec<Outcome> {
    Guest { name: "reference guest", cmdline, devices, mem_bytes: 64 << 20, ..Guest::new(PV) }.boot()
}

const VIRTIO: Cause = Cause::Hypercall(PARAVANE_VIRTIO_OP as u8);

#[test]
fn entropy_is_drawn() {
    for outcome in boot("test=entropy", entropy) {
        outcome.must_end(&DomainEnd::PowerOff).must_print("test: name=entropy ok=true");
    }
}

#[test]
fn a_guest_without_devices_says_so_and_goes_on() {
    for (name, image) in BUILDS {
        for cmdline in ["bench=net-setup", "bench=block-setup", "serve"] {
            let guest = Guest { name, cmdline, devices: none, mem_bytes: 64 << 20, ..Guest::new(image) };
            for outcome in guest.boot() {
                outcome.must_end(&DomainEnd::PowerOff);
                let what = if cmdline == "serve" { "no network" } else { "why=no-such-device" };
                outcome.must_print(what);
            }
        }
    }
}

#[test]
fn a_network_interface_is_set_up_by_one_hypercall() {
    for outcome in boot("bench=net-setup", network) {
        let (_, region) = outcome.must_have_done("net-setup");
        let one = count(&region, VIRTIO) == 1 && own_traps(&region) == 1;
        outcome.must(one, format_args!("should have made one hypercall:\n{}", table(&region)));
    }
}

#[test]
fn frames_are_sent_without_a_trap_for_each() {
    for workload in ["net-send-64", "net-send-1500"] {
        for outcome in boot(&format!("bench={workload}"), network) {
            let (said, region) = outcome.must_have_done(workload);
            // A kick and a wait for each half of the queue, were the device never awake.
            let few = said.ops == 10_000 && own_traps(&region) < said.ops;
            outcome.must(few, format_args!("should have trapped less:\n{}", table(&region)));
        }
    }
}

#[test]
fn frames_are_received_in_order_without_a_trap_for_each() {
    for workload in ["net-receive-64", "net-receive-1500"] {
        for outcome in boot(&format!("bench={workload}"), network) {
            let (said, region) = outcome.must_have_done(workload);
            let few = said.ops == 10_000 && own_traps(&region) < said.ops;
            outcome.must(few, format_args!("should have trapped less:\n{}", table(&region)));
        }
    }
}

fn table(region: &Region) -> String {
    paravane::ledger::exit_table(region)
}
