//! Files that are not kernels, and damaged kernels: refused with a message, and the host survives.

use std::borrow::Cow;

use paravane::image::builtin::{BARE, PV};
use paravane::launch::RunError;
use paravane::machine::end::DomainEnd;
use paravane_tests::boot::Guest;
use paravane_tests::guests::HELLO;
use paravane_tests::machine::engines;
use paravane_tests::random::SplitMix64;
use paravane_tests::verdict::{broken_product, skip};

/// Checks that a file is refused on every engine. Returns the message.
fn refusal(name: &str, file: impl Into<Cow<'static, [u8]>>) -> String {
    let guest = Guest { name, ..Guest::new(file) };
    let mut message = String::new();
    for &engine in engines() {
        message = match guest.boot_on(engine) {
            Err(RunError::Image { image, error }) if image == name => error.to_string(),
            Err(other) => {
                broken_product(format_args!("{name} on {engine:?} is refused for another reason: {other}"))
            }
            Ok(outcome) => broken_product(format_args!("{name} was started\n{outcome}")),
        };
        let advice = message.contains(';') || message.contains('?');
        if !advice || message.contains('\n') {
            broken_product(format_args!("{name}: not one line that says what to do: {message}"));
        }
    }
    message
}

#[track_caller]
fn must_say(message: &str, part: &str) {
    if !message.contains(part) && !engines().is_empty() {
        broken_product(format_args!("the message should say {part:?}: {message}"));
    }
}

fn host_is_alive() {
    for outcome in Guest::new(HELLO).boot() {
        outcome.must_end(&DomainEnd::PowerOff);
    }
}

#[test]
fn files_that_are_no_kernels() {
    let mut random = SplitMix64::new(1);
    must_say(&refusal("an empty file", Vec::new()), "empty");
    must_say(&refusal("text", b"hello".to_vec()), "not an ELF file");
    must_say(&refusal("a script", b"#!/bin/sh\nexit 0\n".to_vec()), "script");
    must_say(&refusal("zeroes", vec![0; 1 << 20]), "not an ELF file");
    for size in [1, 16, 64, 4096, 1 << 20] {
        must_say(&refusal("random bytes", random.bytes(size)), "not an ELF file");
    }
    must_say(&refusal("an ELF file's first bytes", b"\x7fELF".to_vec()), "cut off");
    host_is_alive();
}

#[test]
fn programs_for_linux() {
    for path in ["/bin/true", "/proc/self/exe"] {
        match std::fs::read(path) {
            Ok(file) => must_say(&refusal(path, file), "not a guest"),
            Err(error) => skip(path, error),
        }
    }
    host_is_alive();
}

#[test]
fn kernels_for_other_machines() {
    for image in [PV, BARE] {
        let with = |at: usize, byte: u8| {
            let mut file = image.to_vec();
            file[at] = byte;
            file
        };
        // EI_CLASS, EI_DATA and e_machine (gABI, "ELF Header").
        must_say(&refusal("a 32-bit kernel", with(4, 1)), "32-bit");
        must_say(&refusal("a big-endian kernel", with(5, 2)), "only x86-64");
        must_say(&refusal("a kernel for Arm", with(18, 183)), "64-bit Arm");
        // e_type: shared objects and object files.
        must_say(&refusal("a position-independent kernel", with(16, 3)), "static executable");
    }
    host_is_alive();
}

#[test]
fn kernels_that_are_cut_off() {
    for (name, image) in [("pv", PV), ("bare", BARE)] {
        let cuts = (1..64).chain((64..1024).step_by(24)).chain((1..16).map(|i| image.len() * i / 16));
        for length in cuts {
            let cut = image[..length].to_vec();
            for &engine in engines() {
                let guest = Guest { name, cmdline: "test=paging", ..Guest::new(cut.clone()) };
                match guest.boot_on(engine) {
                    Err(RunError::Image { .. }) => {}
                    Err(other) => broken_product(format_args!("{name} cut to {length} bytes: {other}")),
                    // The part that was cut off may hold only symbols, which a boot does not need.
                    Ok(outcome) => drop(outcome.must_end(&DomainEnd::PowerOff).must_print("ok=true")),
                }
            }
        }
    }
    host_is_alive();
}

#[test]
fn a_kernel_that_needs_more_memory_than_it_gets() {
    for image in [PV, BARE] {
        for &engine in engines() {
            for mem_bytes in [4096, 1 << 20] {
                let guest = Guest { name: "a large kernel", mem_bytes, ..Guest::new(image) };
                match guest.boot_on(engine) {
                    Err(RunError::Build { error, .. }) => must_say(&error.to_string(), "raise --mem to"),
                    Err(other) => broken_product(format_args!("{mem_bytes} bytes on {engine:?}: {other}")),
                    Ok(outcome) => broken_product(format_args!("it fits into {mem_bytes} bytes\n{outcome}")),
                }
            }
        }
    }
    host_is_alive();
}
