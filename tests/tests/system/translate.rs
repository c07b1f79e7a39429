//! Translation where it is awkward: little room, a kernel that writes to our state page, one that wants our addresses.

use std::time::Duration;

use paravane::image::builtin::BARE;
use paravane::ledger::Cause;
use paravane::machine::end::DomainEnd;
use paravane::technique::translate::SMALL;
use paravane::technique::{TECHNIQUES, Technique};
use paravane_tests::boot::Guest;
use paravane_tests::images::{ENTRY, Kind, VIRT_BASE, kernel, with_functions};

use crate::workloads::own_traps;

static SMALL_CACHE: Technique = SMALL;

/// Where our pages are first tried: the state page, for a kernel at [`VIRT_BASE`].
const OURS: u32 = 0x3f00_0000;
/// A page of the kernel's own, and two for tables.
const DATA: u64 = 0x8000;
const TABLES: [u64; 2] = [0x9000, 0xa000];

fn translating() -> impl Iterator<Item = &'static Technique> {
    TECHNIQUES.iter().chain([&SMALL_CACHE]).filter(|technique| technique.name.starts_with("translate"))
}

/// The cache is filled, dropped and filled again; the workloads' results are right.
#[test]
fn a_kernel_runs_in_64_kib_of_translations() {
    const WORKLOADS: [&str; 5] = ["null-call", "map-512", "console-4k", "address-space", "fib"];
    let commands: String = WORKLOADS.iter().map(|name| format!("bench {name}\n")).collect();
    let input = format!("help\nmem\n{commands}{commands}halt\n");
    let guest = Guest {
        technique: Some(&SMALL_CACHE),
        input: input.as_bytes(),
        mem_bytes: 64 << 20,
        ..Guest::new(BARE)
    };
    for outcome in guest.boot() {
        outcome.must_end(&DomainEnd::PowerOff);
        for name in WORKLOADS {
            let right = outcome
                .text
                .lines()
                .filter(|line| line.contains(&format!("name={name} ")) && line.contains("ok=true"));
            outcome.must(right.count() == 2, format_args!("should have done {name} twice"));
        }
        let work = outcome.report.ledger.whole(0).work;
        let flushes = work.iter().find(|row| row.kind == "translation cache flushes");
        let flushes = flushes.map_or(0, |row| row.count);
        outcome.must(flushes > 1, format_args!("should have filled its cache, and did {flushes} times"));
    }
}

/// `out dx, al` of these to the UART, then power-off.
fn says(text: &[u8]) -> Vec<u8> {
    let mut code = vec![0xba, 0xf8, 3, 0, 0];
    for byte in text {
        code.extend([0xb0, *byte, 0xee]);
    }
    // mov edx, 0x604; mov eax, 0x2000; out dx, ax; hlt
    code.extend([0xba, 4, 6, 0, 0, 0xb8, 0, 0x20, 0, 0, 0x66, 0xef, 0xf4]);
    code
}

/// Whatever a kernel writes to the state page, only it can come to grief.
#[test]
fn nonsense_on_the_state_page_harms_nobody_else() {
    for pattern in [0u64, u64::MAX, 0x8000_0000_0000_0000, 0x1234_5678_9abc_def0, 0x3f01_2345] {
        // mov rax, pattern; mov edi, OURS; mov ecx, 512; rep stosq, twice with an instruction of each kind in between
        let mut code = [&[0x48, 0xb8][..], &pattern.to_le_bytes()].concat();
        let fill = [&[0xbf][..], &OURS.to_le_bytes(), &[0xb9, 0, 2, 0, 0, 0xf3, 0x48, 0xab]].concat();
        for between in [
            &[0xfa, 0x9c, 0x5b][..],
            &[0x53, 0x9d],
            &[0xfb],
            &[0x0f, 0x20, 0xd8, 0xb0, b'x'],
            &[0x0f, 0x01, 0xf8],
        ] {
            code.extend(&fill);
            code.extend(between);
        }
        code.extend(says(b"done"));
        let image = kernel(Kind::Bare, &code);
        for technique in translating() {
            let deadline = Duration::from_secs(2);
            let guest = Guest { technique: Some(technique), deadline, ..Guest::new(image.clone()) };
            for outcome in guest.boot() {
                let ended = match &outcome.end {
                    DomainEnd::PowerOff | DomainEnd::Interrupted => true,
                    DomainEnd::Killed(why) => !why.is_empty() && !why.contains('\n'),
                    _ => false,
                };
                outcome.must(ended, "should have ended alone, with one line that says why if it was killed");
            }
        }
    }
}

/// A kernel that maps the addresses where our pages are gets them: ours go elsewhere.
#[test]
fn the_kernels_own_pages_win_over_ours() {
    let physical = |at: u64| ENTRY - VIRT_BASE + at;
    let entry = |at: u64| (physical(at) as u32 | 0x63).to_le_bytes();
    let short = |at: u64| ((ENTRY + at) as u32).to_le_bytes();
    // mov rax, cr3; mov rax, [rax + base]; and rax, ~0xfff: the L3 table, whose first slot is free
    let mut code = vec![0x0f, 0x20, 0xd8, 0x48, 0x8b, 0x80];
    code.extend((VIRT_BASE as u32).to_le_bytes());
    code.extend([0x48, 0x25, 0x00, 0xf0, 0xff, 0xff]);
    // mov qword [L2 + 8 slot], L1; mov qword [L1], data
    let slot = u64::from(OURS) >> 21 & 511;
    code.extend([&[0x48, 0xc7, 0x04, 0x25][..], &short(TABLES[0] + slot * 8), &entry(TABLES[1])].concat());
    code.extend([&[0x48, 0xc7, 0x04, 0x25][..], &short(TABLES[1]), &entry(DATA)].concat());
    // mov qword [rax + base], L2
    code.extend([&[0x48, 0xc7, 0x80][..], &(VIRT_BASE as u32).to_le_bytes(), &entry(TABLES[0])].concat());
    // mov dword [OURS], 0x11223344; cli; mov rbx, cr3; cmp dword [data], 0x11223344; jne over what follows
    code.extend([&[0xc7, 0x04, 0x25][..], &OURS.to_le_bytes(), &0x1122_3344u32.to_le_bytes()].concat());
    code.extend([0xfa, 0x0f, 0x20, 0xdb]);
    code.extend([&[0x81, 0x3c, 0x25][..], &short(DATA), &0x1122_3344u32.to_le_bytes()].concat());
    let mine = says(b"mine");
    code.extend([0x75, mine.len() as u8]);
    code.extend(mine);
    code.extend(says(b"not mine"));
    let image = kernel(Kind::Bare, &code);
    for technique in translating() {
        for outcome in (Guest { technique: Some(technique), ..Guest::new(image.clone()) }).boot() {
            outcome.must_end(&DomainEnd::PowerOff);
            outcome.must(outcome.text.trim_end() == "mine", "should have found its own page");
        }
    }
}

/// Functions that symbols name are translated before they run; what they are when they run counts.
#[test]
fn functions_that_are_known_are_not_missed() {
    // Each on a page of its own, and not at the same place; the kernel rewrites what the first one says.
    let at = |n: u64| 0x1010 * (n + 1);
    let mut code = Vec::new();
    // mov byte [function + 1], '0'
    code.extend([&[0xc6, 0x04, 0x25][..], &((ENTRY + at(0) + 1) as u32).to_le_bytes(), b"0"].concat());
    for n in 0..10 {
        // mov eax, function; call rax
        code.extend([&[0xb8][..], &((ENTRY + at(n)) as u32).to_le_bytes(), &[0xff, 0xd0]].concat());
    }
    code.extend(says(b""));
    let main = code.len() as u64;
    let mut functions = vec![(ENTRY, main)];
    for (n, digit) in (0..10).zip(b"x123456789") {
        code.resize(at(n) as usize, 0xcc);
        // mov al, digit; mov edx, 0x3f8; out dx, al; ret
        let function = [0xb0, *digit, 0xba, 0xf8, 3, 0, 0, 0xee, 0xc3];
        functions.push((ENTRY + at(n), function.len() as u64));
        code.extend(function);
    }
    let unknown = kernel(Kind::Bare, &code);
    let known = with_functions(unknown.clone(), &functions);
    for technique in TECHNIQUES.iter().filter(|technique| technique.name.starts_with("translate")) {
        for (image, most) in [(&unknown, u64::MAX), (&known, 2)] {
            for outcome in (Guest { technique: Some(technique), ..Guest::new(image.clone()) }).boot() {
                outcome.must_end(&DomainEnd::PowerOff);
                outcome.must(outcome.text.trim_end() == "0123456789", "should have called each function");
                let exits = outcome.report.ledger.whole(0).exits;
                let missed = exits
                    .iter()
                    .filter(|row| matches!(row.cause, Cause::TranslateMiss | Cause::LookupMiss))
                    .map(|row| row.count)
                    .sum::<u64>();
                let expected = missed <= most && (most != u64::MAX || missed >= 9);
                outcome.must(expected, format_args!("should have missed {most} at most, and did {missed}"));
            }
        }
    }
}

/// Stores to page tables that are logged leave the guest when somebody has to look at them, and hardly else.
#[test]
fn aliases_of_page_tables_outlive_a_flush() {
    let adaptive = Technique::named("translate-adaptive").expect("a technique of that name");
    let guest =
        Guest { name: "reference guest", cmdline: "bench=map-512", mem_bytes: 64 << 20, ..Guest::new(BARE) };
    for outcome in (Guest { technique: Some(adaptive), ..guest }).boot() {
        let (_, region) = outcome.must_have_done("map-512");
        let exits = own_traps(&region);
        // Two for each of three stores until it is known, two flushes, and the first look at what was noted.
        outcome.must(exits < 20, format_args!("should have left some ten times, and did {exits} times"));
    }
}
