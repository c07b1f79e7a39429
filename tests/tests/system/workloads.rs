//! The workloads of `compare`: correct results, and the number of traps that each technique may take.

use paravane::compare::Needs;
use paravane::image::builtin::{BARE, PV};
use paravane::ledger::{Cause, MmioDevice, PortDevice, PrivOp, Region, VirtioRegister};
use paravane::virtio::Device;
use paravane_tests::boot::Guest;

use crate::techniques::boot_by_each;

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
        // One look at the line status for each 16 bytes, which the FIFO takes.
        count(region, Cause::PortOut(PortDevice::Uart)) == ops && own_traps(region) == ops + ops / 16
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

/// A late timer need not be waited for.
fn with_or_without_waits(traps: u64, each: u64, ops: u64) -> bool {
    (each * ops..=(each + 1) * ops + ops / 10).contains(&traps)
}

#[test]
fn timer_1000() {
    // Two hypercalls each, to set the timer and to wait.
    measure(PV, "timer-1000", |region, ops| ops == 1000 && with_or_without_waits(own_traps(region), 1, ops));
    // The timer ticks by itself: it is started by three stores, and stopped by one. The rest is the interrupt
    // controller's acknowledgement, IRETQ, and STI, HLT and CLI to wait.
    measure(BARE, "timer-1000", |region, ops| {
        // Where a busy host made ticks late, one may have followed the last, and there was less to wait for.
        let each = ops..=ops + 1;
        count(region, Cause::PortOut(PortDevice::Pit)) == 4
            && each.contains(&count(region, Cause::PortOut(PortDevice::Pic)))
            && each.contains(&count(region, Cause::PrivilegedInstruction(PrivOp::Iretq)))
            && own_traps(region) <= 5 * ops + 20
    });
}

#[test]
fn one_shot_1000() {
    measure(PV, "one-shot-1000", |region, ops| with_or_without_waits(own_traps(region), 1, ops));
    // Two bytes of a count each; the mode is set already.
    measure(BARE, "one-shot-1000", |region, ops| count(region, Cause::PortOut(PortDevice::Pit)) == 2 * ops);
}

/// Each row: a nanobenchmark, and the exits that one repetition takes in the paravirtual kernel and in the bare one by
/// trap-and-emulate; `None` where that kernel has no such operation.
const NANOBENCHMARKS: [(&str, Option<u64>, Option<u64>); 22] = [
    ("alu", Some(0), Some(0)),
    ("fib", Some(0), Some(0)),
    ("callret", Some(0), Some(0)),
    ("indirect-1", Some(0), Some(0)),
    ("indirect-4", Some(0), Some(0)),
    ("indirect-16", Some(0), Some(0)),
    ("smc", Some(0), Some(0)),
    // The call and the return.
    ("syscall", Some(2), Some(2)),
    // The paravirtual kernel's handler returns by itself.
    ("pgfault", Some(1), Some(2)),
    ("divzero", Some(1), Some(2)),
    ("ptemod", Some(1), Some(1)),
    // Two stores, which the shadow follows at once, and INVLPG.
    ("ptemap", Some(2), Some(3)),
    ("clisti", Some(0), Some(2)),
    ("cr3wr", Some(1), Some(1)),
    ("iret", Some(0), Some(1)),
    ("in", None, Some(1)),
    ("cr8wr", None, Some(1)),
    ("cr3rd", None, Some(1)),
    ("null", Some(1), None),
    ("update-1", Some(1), None),
    ("update-512", Some(1), None),
    ("upcall", Some(1), None),
];

#[test]
fn nanobenchmarks_exit_as_often_as_they_must() {
    for (name, pv, bare) in NANOBENCHMARKS {
        for (image, exits, is_bare) in [(PV, pv, false), (BARE, bare, true)] {
            let Some(exits) = exits else { continue };
            measure(image, name, |region, ops| {
                // One call changes 512 entries.
                let operations = if name == "update-512" { ops / 512 } else { ops };
                let around = match name {
                    // A user program is started once, and ends once.
                    "syscall" => 2,
                    // A change that matters: away, and back.
                    "ptemod" if is_bare => 2,
                    _ => 0,
                };
                own_traps(region) == operations * exits + around
            });
        }
    }
}

/// Those whose handlers and return ways are made for the purpose, and code that changes: by every technique the kernel
/// finds the effect that it expects, after as many repetitions.
#[test]
fn the_machines_operations_have_their_effect_by_every_technique() {
    for name in ["syscall", "pgfault", "clisti", "smc"] {
        let cmdline = format!("bench={name}");
        let guest = Guest { name, cmdline: &cmdline, mem_bytes: 64 << 20, ..Guest::new(BARE) };
        for (technique, outcome) in boot_by_each(&guest) {
            let (said, _) = outcome.must_have_done(name);
            outcome.must(said.ops == 1000, format_args!("should have done 1000 by {}", technique.name));
        }
    }
}

#[test]
fn a_nanobenchmark_says_what_a_repetition_takes() {
    let guest = Guest { name: "reference guest", cmdline: "bench=callret", ..Guest::new(BARE) };
    for outcome in guest.boot() {
        let (said, _) = outcome.must_have_done("callret");
        let figure = |name: &str| said.details.get(name).and_then(|text| text.parse::<u64>().ok());
        let (least, median) = (figure("cycles-x100-min"), figure("cycles-x100-median"));
        outcome.must(least > Some(0) && least <= median, "should say how many cycles a call takes");
        outcome.must(figure("repetitions").is_some_and(|n| n >= 4), "should say how often it repeated");
    }
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
