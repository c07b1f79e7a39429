//! Processes of the reference kernel, on both machines and every engine; the same programs on Linux.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::{fs, io};

use paravane::compare::WORKLOADS;
use paravane::image::builtin::{BARE, PROGRAMS};
use paravane::machine::end::DomainEnd;
use paravane_tests::boot::{Guest, Outcome};
use paravane_tests::verdict::note;

use crate::reference::BUILDS;
use crate::techniques::boot_by_each;
use crate::workloads::own_traps;

/// Runs a program, whose name and arguments are separated by commas, on both machines.
fn run(words: &str, mib: u64, input: &[u8]) -> Vec<Outcome> {
    let cmdline = format!("run={words}");
    let boot = |(name, image): (&'static str, &'static [u8])| {
        let guest = Guest { name, cmdline: &cmdline, mem_bytes: mib << 20, input, ..Guest::new(image) };
        Guest { initrd: Some(PROGRAMS), ..guest }.boot()
    };
    BUILDS.into_iter().flat_map(boot).collect()
}

/// What a program prints on Linux.
fn on_linux(name: &str) -> io::Result<String> {
    let file = std::env::temp_dir().join(format!("paravane-programs-{}.elf", std::process::id()));
    fs::write(&file, PROGRAMS)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    let output = Command::new(&file).arg(name).output();
    fs::remove_file(&file)?;
    Ok(String::from_utf8_lossy(&output?.stdout).into_owned())
}

/// The line of the contract's result.
fn result(text: &str) -> Option<&str> {
    text.lines().find(|line| line.starts_with("contract: run="))
}

#[test]
fn system_calls_keep_the_contract_that_linux_keeps() {
    let linux = on_linux("contract").expect("the programs run on Linux");
    let expected = result(&linux).unwrap_or_else(|| panic!("Linux: {linux}")).to_owned();
    assert!(expected.ends_with(" failed=0"), "Linux: {linux}");
    for outcome in run("contract", 64, b"") {
        outcome.must_end(&DomainEnd::PowerOff).must_print(&expected);
    }
    note(format_args!("processes: {expected}, on Linux as well"));
}

#[test]
fn a_fault_ends_its_program_and_nothing_else() {
    let input = b"fault read 0x40100000\nfault write 0x40100000\nfault jump 0x40100000\nfault privileged\nfault stack\n\
                  echo still here\nexit 0\n";
    for outcome in run("sh", 64, input) {
        outcome.must_end(&DomainEnd::PowerOff).must_print("still here\n");
        for line in [
            "]: page fault, reading 0x40100000, rip 0x80",
            "]: page fault, writing 0x40100000, rip 0x80",
            "]: page fault, executing 0x40100000, rip 0x40100000",
            "]: general protection 0x0, rip 0x80",
            "]: page fault, writing 0x803f",
        ] {
            outcome.must_print(line);
        }
        outcome.must(!outcome.text.contains("nothing happened"), "should have stopped the program");
    }
}

#[test]
fn the_shell_connects_programs() {
    let input =
        b"echo one two three | cat | wc\nsh -c true ; echo and\ncat < /dev/null | wc\nps | cat\nexit 0\n";
    for outcome in run("sh", 64, input) {
        outcome.must_end(&DomainEnd::PowerOff);
        for line in ["1 3 14\n", "and\n", "0 0 0\n", " cat\n"] {
            outcome.must_print(line);
        }
    }
}

/// One that takes all memory; then an endless loop and a fork bomb, at once.
#[test]
fn bad_neighbours_leave_the_shell_responsive() {
    let input = b"hog &\nwait\necho one | cat\nloop &\nforkbomb &\nsleep 100ms\necho two\nkill -9 -1\nwait\n\
                  echo three | cat\nexit 0\n";
    for outcome in run("sh", 32, input) {
        outcome.must_end(&DomainEnd::PowerOff);
        for line in ["hog[2]: out of memory, touching 0x80", "one\n", "two\n", "three\n"] {
            outcome.must_print(line);
        }
    }
}

/// Those that make the kernel itself remember much: areas that each fork copies, and full pipes. There is room for
/// others as soon as they say that there is none for them.
#[test]
fn what_the_kernel_remembers_for_programs_is_limited() {
    let input = b"hoard areas\necho one | cat\nkill -9 -1\nwait\nhoard pipes\necho two | cat\nhoard areas\n\
                  echo three | cat\nkill -9 -1\nwait\necho four | cat\nexit 0\n";
    for outcome in run("sh", 32, input) {
        outcome.must_end(&DomainEnd::PowerOff);
        for line in [" areas, 0 pipes, then error 12", " 0 areas, ", "one\n", "two\n", "three\n", "four\n"] {
            outcome.must_print(line);
        }
    }
}

#[test]
fn a_thousand_processes_live_at_once() {
    for outcome in run("crowd,1000", 256, b"") {
        outcome.must_end(&DomainEnd::PowerOff).must_print("crowd: 1000 processes live at once\n");
        outcome.must_print("crowd: 1000 answered, 1000 ended\n");
    }
}

#[test]
fn processes_compute_what_they_should() {
    for outcome in run("stress,50", 64, b"") {
        outcome.must_end(&DomainEnd::PowerOff).must_print("stress: 50 rounds, all right\n");
    }
}

/// The exits of a program, without those of one that does less.
fn exits(more: &str, less: &str) -> Vec<(String, u64)> {
    let count = |outcome: &Outcome| {
        outcome.must_end(&DomainEnd::PowerOff);
        outcome.report.ledger.exits()
    };
    let pairs = run(more, 64, b"").into_iter().zip(run(less, 64, b""));
    pairs.map(|(more, less)| (more.name.clone(), count(&more).saturating_sub(count(&less)))).collect()
}

/// While nothing can run, the processor is given back: a long sleep takes no more exits than a short one, but those of
/// a timer that counts no further than 55 ms.
#[test]
fn an_idle_kernel_gives_the_processor_back() {
    for (machine, exits) in exits("sleep,2", "sleep,1ms") {
        let most = if machine == "pv" { 20 } else { 40 * 10 };
        assert!(exits <= most, "{machine}: {exits} exits in two seconds of sleep");
    }
}

/// Exits of a benchmark between its marks, for each operation: the machine and the engine, how many.
fn measured(name: &str, words: &str) -> Vec<(String, &'static str, f64)> {
    let each = |outcome: Outcome| {
        let (said, region) = outcome.must_have_done(name);
        let machine = outcome.name.split(' ').next().unwrap_or_default().to_owned();
        (machine, outcome.engine, own_traps(&region) as f64 / said.ops as f64)
    };
    run(words, 64, b"").into_iter().map(each).collect()
}

/// Each of them works on every engine, and is measured; briefly, for how long it takes is for a quiet machine.
#[test]
fn every_program_of_the_suite_is_measured() {
    for workload in WORKLOADS {
        let Some((words, _)) = workload.program.and_then(|words| words.rsplit_once(',')) else { continue };
        let few = if words.starts_with("lat_ctx") { 32 } else { 2 };
        let all = measured(workload.name, &format!("{words},{few}"));
        let told: Vec<String> =
            all.iter().map(|(machine, engine, each)| format!("{machine} on {engine} {each:.1}")).collect();
        note(format_args!("suite: {}: exits for each operation: {}", workload.name, told.join(", ")));
    }
}

/// Two of them by every technique that there is: those that a bare kernel is interpreted, patched or translated by know
/// nothing of programs. Neither computes much, for who interprets.
#[test]
fn programs_do_the_same_work_by_every_technique() {
    for (name, cmdline) in
        [("lat_proc-fork", "run=lat_proc,fork,2"), ("lat_proc-exec", "run=lat_proc,exec,2")]
    {
        let guest = Guest { name: "bare", cmdline, mem_bytes: 64 << 20, ..Guest::new(BARE) };
        let outcomes = boot_by_each(&Guest { initrd: Some(PROGRAMS), ..guest });
        let ops = outcomes.iter().map(|(_, outcome)| outcome.must_have_done(name).0.ops).collect::<Vec<_>>();
        assert!(ops.len() > 1 && ops.iter().all(|done| Some(done) == ops.first()), "{name}: {ops:?}");
    }
}

/// The share that a benchmark's exits on the paravirtual machine, on the engine that takes more of them, are of those
/// where each trap counts, on the engine that takes fewer; nothing if there is no engine.
fn share(name: &str, words: &str) -> Option<f64> {
    let all = measured(name, words);
    let of = |wanted: &'static str| {
        all.iter().filter(move |(machine, ..)| machine == wanted).map(|(.., each)| *each)
    };
    let (pv, bare) = (of("pv").reduce(f64::max)?, of("bare").reduce(f64::min)?);
    note(format_args!("suite: {name}: {pv:.1} exits by asking, where each trap counts {bare:.1}"));
    Some(pv / bare)
}

/// A fork of a thousand pages that can be written to is one batch of updates, where each page is a trap; others gain
/// less. On a busy host time slices end within what is measured, which adds some exits: one try of three has to do.
#[test]
fn who_asks_needs_a_part_of_the_exits() {
    for (name, words, most) in [
        ("lat_proc-fork-1000", "lat_proc,fork-1000,2", 1.0 / 50.0),
        ("lat_pagefault", "lat_pagefault,256", 0.75),
        ("lat_mmap", "lat_mmap,4", 0.75),
        ("storm", "storm,2", 0.8),
    ] {
        let mut tries = Vec::new();
        while tries.len() < 3 && tries.last().is_none_or(|share| *share > most) {
            let Some(share) = share(name, words) else { return };
            tries.push(share);
        }
        assert!(tries.last().is_some_and(|share| *share <= most), "{name}: {tries:?}, not {most}");
    }
}
