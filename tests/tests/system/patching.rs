//! What kernels do to patches: jumps into them, pages where stubs lie, nonsense where stubs keep their state.

use std::collections::BTreeSet;
use std::time::Duration;

use iced_x86::{Decoder, DecoderOptions};
use paravane::compare::{Needs, WORKLOADS};
use paravane::image::GuestKind;
use paravane::image::builtin::{BARE, PROGRAMS};
use paravane::launch::EngineChoice;
use paravane::ledger::Cause;
use paravane::machine::end::DomainEnd;
use paravane::technique::{EngineNeed, Technique};
use paravane::virtio::Device;
use paravane_tests::boot::{Guest, Outcome, PATIENCE};
use paravane_tests::machine::engines;
use paravane_tests::soup::bare::{jump_into_row, mapping_soup, nonsense_soup, stepping};
use paravane_tests::soup::servings::watched;
use paravane_tests::verdict::note;

/// Ends a kernel that loops, as one may that was damaged.
const DAMAGED: Duration = Duration::from_millis(500);
const SEEDS: u64 = 6;

fn boot(engine: EngineChoice, technique: &str, name: &str, image: Vec<u8>) -> Outcome {
    boot_within(PATIENCE / 2, engine, technique, name, image)
}

fn boot_within(
    deadline: Duration,
    engine: EngineChoice,
    technique: &str,
    name: &str,
    image: Vec<u8>,
) -> Outcome {
    let technique = Technique::named(technique).expect("a row of the table");
    // One that executes the guest itself runs on no engine.
    let engine = if technique.engine == EngineNeed::Nothing { EngineChoice::Auto } else { engine };
    let name = format!("{name} by {} on {}", technique.name, engine.name());
    watched(&name.clone(), move || {
        let guest = Guest { name: &name, technique: Some(technique), ..Guest::new(image) };
        let guest = Guest { mem_bytes: 8 << 20, deadline, ..guest };
        guest.boot_on(engine).unwrap_or_else(|why| panic!("{name} does not start: {why}"))
    })
}

fn patched(outcome: &Outcome, what: &str) -> u64 {
    let work = outcome.report.ledger.whole(0).work;
    work.iter().filter(|row| row.kind.contains(what)).map(|row| row.count).sum()
}

/// Rows of instructions, each of which is one patched range or more.
const ROWS: [&[u8]; 5] = [
    // cli; mov eax, 5
    &[0xfa, 0xb8, 5, 0, 0, 0],
    // sti; cli; inc rbx; nop
    &[0xfb, 0xfa, 0x48, 0xff, 0xc3, 0x90],
    // mov rax, cr3; add eax, ebx
    &[0x0f, 0x20, 0xd8, 0x01, 0xd8],
    // cli; cli; cli; cli; cli; cli
    &[0xfa, 0xfa, 0xfa, 0xfa, 0xfa, 0xfa],
    // in al, 0x21; mov cr8, rdx (which is 0); xor eax, eax
    &[0xe4, 0x21, 0x31, 0xd2, 0x44, 0x0f, 0x22, 0xc2, 0x31, 0xc0],
];

#[test]
fn jumps_to_every_byte_of_a_patched_range() {
    let (mut whole, mut others, mut caught) = (0, 0, 0);
    for &engine in engines() {
        for row in ROWS {
            let decoder = Decoder::with_ip(64, row, 0, DecoderOptions::NONE);
            let begins: Vec<u64> = decoder.into_iter().map(|insn| insn.ip()).collect();
            for into in 0..row.len() as u64 {
                let image = jump_into_row(row, into);
                let name = format!("byte {into} of {row:x?}");
                let is_whole = begins.contains(&into);
                let deadline = if is_whole { PATIENCE / 2 } else { DAMAGED };
                let outcome = boot_within(deadline, engine, "patch", &name, image.clone());
                caught += patched(&outcome, "jumps into patched ranges");
                if is_whole {
                    let trapped = boot(engine, "trap", &name, image);
                    trapped.must_end(&DomainEnd::PowerOff);
                    let same = outcome.end == trapped.end && outcome.text == trapped.text;
                    outcome.must(same, format_args!("should have printed {:?}", trapped.text));
                    whole += 1;
                } else {
                    // The code that is there depends on the patch. It may do anything to its kernel.
                    others += 1;
                }
            }
        }
    }
    note(format_args!(
        "{whole} jumps to instructions, {others} to other bytes; {caught} caught by trapping bytes"
    ));
    assert!(caught != 0, "no jump was caught: the test shows nothing");
}

#[test]
fn a_kernel_that_maps_the_overlays_pages() {
    for &engine in engines() {
        for seed in 1..=SEEDS {
            let name = format!("mapping soup of seed {seed}");
            let trapped = boot(engine, "trap", &name, mapping_soup(seed));
            trapped.must_end(&DomainEnd::PowerOff);
            for technique in ["patch", "translate", "interpret"] {
                let outcome = boot(engine, technique, &name, mapping_soup(seed));
                let same = outcome.end == trapped.end && outcome.text == trapped.text;
                outcome.must(same, format_args!("should have printed {:?}", trapped.text));
                if technique == "patch" {
                    let moved = patched(&outcome, "patches undone") != 0;
                    outcome.must(moved, "should have moved its stubs: the test shows nothing");
                }
            }
        }
    }
}

#[test]
fn a_kernel_that_scribbles_on_the_state_page_harms_itself() {
    let (mut survived, mut ended) = (0, 0);
    for &engine in engines() {
        for seed in 1..=SEEDS {
            let name = format!("nonsense of seed {seed}");
            let outcome = boot_within(DAMAGED, engine, "patch", &name, nonsense_soup(seed));
            match &outcome.end {
                DomainEnd::PowerOff => survived += 1,
                DomainEnd::Killed(why) => {
                    outcome.must(!why.is_empty() && !why.contains('\n'), "should have died with one line");
                    ended += 1;
                }
                _ => ended += 1,
            }
        }
    }
    note(format_args!("nonsense on the state page: {survived} kernels got to their end, {ended} did not"));
    assert!(survived != 0, "no kernel could write there: the test shows nothing");
}

#[test]
fn a_kernel_that_steps_itself_sees_its_own_instructions() {
    for &engine in engines() {
        for row in ROWS {
            let name = format!("stepping through {row:x?}");
            let trapped = boot(engine, "trap", &name, stepping(row));
            trapped.must_end(&DomainEnd::PowerOff);
            for technique in ["patch", "translate", "interpret"] {
                let outcome = boot(engine, technique, &name, stepping(row));
                let same = outcome.end == trapped.end && outcome.text == trapped.text;
                outcome.must(same, format_args!("should have printed {:?}", trapped.text));
            }
        }
    }
}

#[test]
fn what_was_patched_does_not_trap() {
    for &engine in engines() {
        let technique = Technique::named("patch").expect("a row of the table");
        let guest = Guest { name: "patched", technique: Some(technique), ..Guest::new(technique.builtin()) };
        let guest = Guest { cmdline: "bench=null-call", mem_bytes: 64 << 20, ..guest };
        let outcome = guest.boot_on(engine).unwrap_or_else(|why| panic!("it does not start: {why}"));
        let region = outcome.must_have_done("null-call").1;
        let exits = region.exits.iter().filter(|row| row.cause != Cause::Kick).count();
        outcome.must(exits == 0, format_args!("should have taken no exit: {:?}", region.exits));
        let (done, left) = (patched(&outcome, "sites patched"), patched(&outcome, "sites left"));
        // Some layouts leave no room: an OUT before a RET, a CLI between an HLT and a jump's target (decision 23).
        outcome.must(left * 50 <= done, format_args!("should have patched nearly all: {done}, not {left}"));
    }
}

/// What makes the devices of a workload.
fn devices(needs: Needs) -> fn() -> Vec<Box<dyn Device>> {
    match needs {
        Needs::Nothing => Vec::new,
        Needs::Console => || Needs::Console.provide().expect("a console"),
        Needs::Disk => || Needs::Disk.provide().expect("a disk"),
        Needs::Network => || Needs::Network.provide().expect("a network"),
    }
}

/// The addresses of the reference kernel's privileged instructions that trap more than once in some workload, from its
/// boot to its end.
fn trapping_again(engine: EngineChoice, technique: &str) -> BTreeSet<u64> {
    let technique = Technique::named(technique).expect("a row of the table");
    let mut sites = BTreeSet::new();
    let bare = WORKLOADS.iter().filter(|workload| workload.only != Some(GuestKind::Pv));
    for workload in bare.filter(|workload| !workload.on_request) {
        let name = format!("{} by {} on {}", workload.name, technique.name, engine.name());
        let cmdline = match workload.program {
            Some(words) => format!("run={words}"),
            None => format!("bench={}", workload.name),
        };
        let initrd = workload.program.map(|_| PROGRAMS);
        let guest = Guest { name: &name, technique: Some(technique), cmdline: &cmdline, ..Guest::new(BARE) };
        let guest = Guest { mem_bytes: 64 << 20, devices: devices(workload.needs), initrd, ..guest };
        let outcome = guest.boot_on(engine).unwrap_or_else(|why| panic!("{name} does not start: {why}"));
        outcome.must_end(&DomainEnd::PowerOff);
        sites.extend(outcome.report.ledger.trapped_again());
    }
    sites
}

#[test]
fn the_sites_that_trap_more_than_once_are_patched() {
    for &engine in engines() {
        let all = trapping_again(engine, "trap");
        let left = trapping_again(engine, "patch");
        note(format_args!(
            "sites that trap more than once on {}: {}, with patches {}",
            engine.name(),
            all.len(),
            left.len()
        ));
        assert!(all.len() >= 32, "the workloads exercise a part of the kernel: {all:x?}");
        // One in a hundred, or in a part of a hundred: when interrupts come decides where a site is met first.
        let at_most = all.len().div_ceil(100);
        assert!(left.len() <= at_most, "of {} sites these trap as before: {left:x?}", all.len());
    }
}
