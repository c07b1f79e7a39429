//! The workloads of `compare`: correct results, and the number of traps that each technique may take.

use paravane::compare::Needs;
use paravane::image::builtin::{BARE, PV};
use paravane::ledger::{Cause, MmioDevice, PortDevice, PrivOp, Region, VirtioRegister};
use paravane::virtio::Device;
use paravane_tests::boot::Guest;

/// The number of exits that the guest caused itself, that is without kicks.
pub fn own_traps(region: &Region) -> u64 {
    region.exits.iter().filter(|row| row.cause != Cause::Kick).map(|row| row.count).sum()
}

pub fn count(region: &Region, cause: Cause) -> u64 {
    region.exits.iter().filter(|row| row.cause == cause).map(|row| row.count).sum()
}

/// Measures one technique on each engine; `check` gets the measurement and the number of operations.
fn measure(image: &'static [u8], workload: &str, check: impl Fn(&Region, u64) -> bool) {
    measure_with(Vec::new, image, workload, check);
}

/// The same with devices.
fn measure_with(
    devices: fn() -> Vec<Box<dyn Device>>,
    image: &'static [u8],
    workload: &str,
    check: impl Fn(&Region, u64) -> bool,
) {
    let cmdline = format!("bench={workload}");
    let guest = Guest {
        name: "reference guest",
        cmdline: &cmdline,
        mem_bytes: 64 << 20,
        devices,
        ..Guest::new(image)
    };
    for outcome in guest.boot() {
        let (said, region) = outcome.must_have_done(workload);
        let table = paravane::ledger::exit_table(&region);
        outcome.must(check(&region, said.ops), format_args!("should have trapped otherwise:\n{table}"));
    }
}

#[test]
fn null_call() {
    measure(PV, "null-call", |region, ops| ops == 1000 && own_traps(region) == ops);
    measure(BARE, "null-call", |region, ops| {
        own_traps(region) == ops && count(region, Cause::PrivilegedInstruction(PrivOp::MovFromCr)) == ops
    });
}

#[test]
fn console_4k() {
    measure(PV, "console-4k", |region, ops| ops == 4096 && own_traps(region) <= 1);
    measure(BARE, "console-4k", |region, ops| {
        own_traps(region) >= ops && count(region, Cause::PortOut(PortDevice::Uart)) >= ops
    });
}

/// A paravirtual guest makes a hypercall for each kick and each wait; a bare one also takes an interrupt. A busy host
/// sometimes wakes the guest without need. Neither needs a trap for each byte.
#[test]
fn console_virtio_4k() {
    let device = || Needs::Console.provide().unwrap();
    measure_with(device, PV, "console-virtio-4k", |region, ops| ops == 4096 && own_traps(region) <= 10);
    measure_with(device, BARE, "console-virtio-4k", |region, ops| {
        let kicks = Cause::Mmio(MmioDevice::VirtioWrite(VirtioRegister::QueueNotify));
        ops == 4096 && count(region, kicks) == 1 && own_traps(region) <= 40
    });
}

#[test]
fn map_512() {
    measure(PV, "map-512", |region, ops| ops == 512 && own_traps(region) <= 3);
    measure(BARE, "map-512", |region, ops| {
        own_traps(region) >= ops && count(region, Cause::PageTableStore) >= ops
    });
}

#[test]
fn map_4096() {
    // Three batches; a batch that exceeds the guest's multicall list takes another multicall.
    measure(PV, "map-4096", |region, ops| ops == 4096 && own_traps(region) <= 3 * 4096 / 64);
    measure(BARE, "map-4096", |region, ops| count(region, Cause::PageTableStore) >= ops);
}

#[test]
fn address_space() {
    measure(PV, "address-space", |region, ops| ops == 16 && own_traps(region) <= ops * 16);
    measure(BARE, "address-space", |region, ops| {
        count(region, Cause::PrivilegedInstruction(PrivOp::MovToCr)) >= 2 * ops
    });
}

#[test]
fn timer_1000() {
    // Two hypercalls each, to set the timer and to wait; for a late timer the guest need not wait.
    measure(PV, "timer-1000", |region, ops| {
        let traps = own_traps(region);
        ops == 1000 && (ops..=2 * ops + ops / 10).contains(&traps)
    });
    measure(BARE, "timer-1000", |region, ops| count(region, Cause::PortOut(PortDevice::Pit)) >= ops);
}

#[test]
fn all_that_is_printed_arrives() {
    for image in [PV, BARE] {
        let guest = Guest { name: "reference guest", cmdline: "bench=console-4k", ..Guest::new(image) };
        for outcome in guest.boot() {
            let line =
                |n: usize| (0..60).map(|c| char::from(b'a' + ((n + c + 3) % 26) as u8)).collect::<String>();
            let printed = outcome.text.replace('\r', "");
            for n in 0..64 {
                let wanted = format!("{n:02} {}\n", line(n));
                outcome.must(printed.contains(&wanted), format_args!("should have printed {wanted:?}"));
            }
        }
    }
}
