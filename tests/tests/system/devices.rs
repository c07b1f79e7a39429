//! Virtio devices as the guest sees them: found, set up by one hypercall, used, or reported as missing.

use paravane::compare::Needs;
use paravane::ledger::{Cause, MmioDevice, VirtioRegister};
use paravane::machine::end::DomainEnd;
use paravane::virtio::Device;
use paravane::virtio::entropy::Entropy;
use paravane_abi::hypercall::PARAVANE_VIRTIO_OP;
use paravane_tests::boot::{Guest, Outcome};
use paravane_tests::verdict::broken_test;

use crate::reference::BUILDS;
use crate::workloads::{count, own_traps};

fn none() -> Vec<Box<dyn Device>> {
    Vec::new()
}

fn entropy() -> Vec<Box<dyn Device>> {
    vec![Box::new(Entropy)]
}

fn network() -> Vec<Box<dyn Device>> {
    Needs::Network.provide().unwrap()
}

fn disk() -> Vec<Box<dyn Device>> {
    Needs::Disk.provide().unwrap_or_else(|why| broken_test(why))
}

/// Boots both builds of the reference guest with devices, on each engine.
fn boot(cmdline: &str, devices: fn() -> Vec<Box<dyn Device>>) -> Vec<(&'static str, Outcome)> {
    let guest = |(name, image)| Guest { name, cmdline, devices, mem_bytes: 64 << 20, ..Guest::new(image) };
    BUILDS.into_iter().flat_map(|build| guest(build).boot().into_iter().map(move |o| (build.0, o))).collect()
}

#[test]
fn entropy_is_drawn() {
    for (_, outcome) in boot("test=entropy", entropy) {
        outcome.must_end(&DomainEnd::PowerOff).must_print("test: name=entropy ok=true");
    }
}

/// A driver that breaks the rules stops its own device and can reset it; the report counts such stops.
#[test]
fn a_device_that_is_misused_stops_and_its_stops_are_counted() {
    for (_, outcome) in
        boot("test=misuse times=20", || [entropy(), entropy()].into_iter().flatten().collect())
    {
        outcome.must_end(&DomainEnd::PowerOff).must_print("test: name=misuse ok=true");
        let why = "queue 0: an entropy request with bytes for the device to read";
        let stopped: Vec<_> =
            outcome.report.devices.iter().map(|d| (&*d.device, d.stops, d.last.as_deref())).collect();
        let expected = [("rng 0", 20, Some(why)), ("rng 1", 0, None)];
        outcome.must(stopped == expected, format_args!("should have stopped one device: {stopped:?}"));
    }
}

#[test]
fn a_guest_without_devices_says_so_and_goes_on() {
    for (cmdline, said) in [
        ("bench=net-setup", "skip: name=net-setup why=no-such-device"),
        ("bench=block-setup", "skip: name=block-setup why=no-such-device"),
        ("serve", "no network"),
    ] {
        for (_, outcome) in boot(cmdline, none) {
            outcome.must_end(&DomainEnd::PowerOff).must_print(said);
        }
    }
}

#[test]
fn several_devices_are_told_apart() {
    for (_, outcome) in
        boot("test=entropy", || [network(), entropy(), network()].into_iter().flatten().collect())
    {
        outcome.must_end(&DomainEnd::PowerOff).must_print("test: name=entropy ok=true");
    }
}

/// One exit, against one for each register access.
#[test]
fn a_network_interface_is_set_up_by_one_hypercall_or_by_dozens_of_traps() {
    for (build, outcome) in boot("bench=net-setup", network) {
        let (_, region) = outcome.must_have_done("net-setup");
        let table = paravane::ledger::exit_table(&region);
        if build == "pv" {
            let one =
                count(&region, Cause::Hypercall(PARAVANE_VIRTIO_OP as u8)) == 1 && own_traps(&region) == 1;
            outcome.must(one, format_args!("should have made one hypercall:\n{table}"));
            continue;
        }
        let registers = region.exits.iter().filter(|row| matches!(row.cause, Cause::Mmio(_)));
        let accesses: u64 = registers.map(|row| row.count).sum();
        outcome.must(accesses >= 24, format_args!("should have used two dozen registers:\n{table}"));
        let ready = Cause::Mmio(MmioDevice::VirtioWrite(VirtioRegister::QueueReady));
        outcome.must(count(&region, ready) == 2, format_args!("should have made two queues ready:\n{table}"));
    }
}

#[test]
fn a_disk_is_set_up_by_one_hypercall_or_by_dozens_of_traps() {
    for (build, outcome) in boot("bench=block-setup", disk) {
        let (_, region) = outcome.must_have_done("block-setup");
        let table = paravane::ledger::exit_table(&region);
        let registers = region.exits.iter().filter(|row| matches!(row.cause, Cause::Mmio(_)));
        let accesses: u64 = registers.map(|row| row.count).sum();
        let right = if build == "pv" { own_traps(&region) == 1 } else { accesses >= 24 };
        outcome.must(right, format_args!("should have been set up otherwise:\n{table}"));
    }
}

/// The guest checks every block that it reads.
#[test]
fn a_deep_queue_needs_few_traps_for_each_read() {
    for (_, outcome) in boot("bench=block-read-qd1", disk) {
        outcome.must_have_done("block-read-qd1");
    }
    for (build, outcome) in boot("bench=block-read-qd32", disk) {
        let (said, region) = outcome.must_have_done("block-read-qd32");
        let table = paravane::ledger::exit_table(&region);
        let few = build != "pv" || own_traps(&region) * 10 < said.ops;
        outcome.must(few, format_args!("should have trapped for less than a tenth of the reads:\n{table}"));
    }
}

/// Every frame arrives intact: the guest compares the peer's counts, and the number in each frame.
#[test]
fn frames_are_exchanged_with_fewer_traps_than_frames() {
    for workload in ["net-send-64", "net-send-1500", "net-receive-64", "net-receive-1500"] {
        for (build, outcome) in boot(&format!("bench={workload}"), network) {
            let (said, region) = outcome.must_have_done(workload);
            let table = paravane::ledger::exit_table(&region);
            outcome.must(said.ops == 10_000, "should have exchanged 10000 frames");
            // A bare guest takes several traps for each interrupt, and a busy host causes many interrupts.
            let few = build != "pv" || own_traps(&region) < said.ops;
            outcome.must(few, format_args!("should have trapped less:\n{table}"));
        }
    }
}
