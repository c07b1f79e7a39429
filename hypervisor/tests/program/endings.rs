//! Exit statuses, the one line that explains them, and what follows it about a bad end.

use std::path::PathBuf;

use paravane::image::builtin::{BARE, PV};

use super::{everywhere, run};

#[test]
fn how_the_guest_ended_is_reported() {
    let endings = [
        ("test=paging", PATIENT, 0, None),
        ("bench=nosuch", PATIENT, 3, Some("paravane: the guest crashed")),
        ("test=nosuch", PATIENT, 3, Some("paravane: the guest crashed")),
        ("test=panic", PATIENT, 3, Some("paravane: the guest crashed")),
        ("test=bad-write", PATIENT, 3, Some("paravane: the guest crashed")),
        ("test=triple", PATIENT, 4, Some("paravane: the hypervisor killed the guest: ")),
        ("test=spin", "500ms", 124, Some("paravane: timed out")),
    ];
    for options in everywhere() {
        for (cmdline, timeout, code, said) in endings {
            let ran = run(&[&options[..], &["--cmdline", cmdline, "--timeout", timeout]].concat(), b"");
            ran.must_end(code);
            match said {
                Some(said) => ran.must_explain(said),
                None => ran.must(ran.err.is_empty(), "should have kept quiet"),
            };
        }
    }
}

const PATIENT: &str = super::PATIENCE;

#[test]
fn a_conversation_over_a_pipe() {
    for options in everywhere() {
        let ran = run(&options, b"help\nmem\nbench null-call\nhalt\n");
        ran.must_end(0).must_print("  halt                 power off").must_print("memory    65536 KiB");
        ran.must_print("bench: name=null-call ops=1000 ok=true").must(ran.err.is_empty(), "should be quiet");
        run(&options, b"mem\nreboot\n").must_end(5).must_say("paravane: the guest asked to be rebooted");
        run(&options, b"mem\npanic\n")
            .must_end(3)
            .must_print("panic: ")
            .must_explain("paravane: the guest crashed");
    }
}

#[test]
fn more_input_than_a_guest_buffers() {
    let lines: Vec<String> = (0..300).map(|i| format!("line {i}")).collect();
    let typed = format!("{}\nquit\n", lines.join("\n"));
    for options in everywhere() {
        let ran = run(&[&options[..], &["--cmdline", "test=echo"]].concat(), typed.as_bytes());
        ran.must_end(0);
        let echoed = ran.out.lines().filter_map(|line| line.trim_end().strip_prefix("echo: "));
        ran.must(echoed.eq(lines.iter()), "should have echoed every line");
    }
}

/// The program reports why a device stopped. For one that stops repeatedly it limits the messages, and prints the
/// number of stops at the end.
#[test]
fn stops_of_a_device_are_reported_without_a_flood() {
    let told = "paravane: virtio rng 0: queue 0: an entropy request with bytes for the device to read; \
                the device is stopped until the guest resets it";
    for options in everywhere() {
        let with = |cmdline| run(&[&options[..], &["--rng", "--cmdline", cmdline]].concat(), b"");
        with("test=misuse").must_end(0).must_say(told).must_print("ok=true");
        let often = with("test=misuse times=200");
        often.must_end(0).must_print("ok=true");
        often.must(often.err.lines().next() == Some(told), "should have told of the first");
        let last = "paravane: virtio rng 0 stopped 200 times in all";
        often.must(often.err.lines().last() == Some(last), "should have said how many there were");
        often.must(often.err.lines().count() < 100, "should have said less");
    }
}

/// A file that is deleted on drop.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("paravane-{}-{name}", std::process::id()));
        if let Err(error) = std::fs::write(&path, bytes) {
            panic!("broken test: {} cannot be written: {error}", path.display());
        }
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // The file is in the directory for temporary files and may stay there if this fails.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn an_error_about_a_file_that_is_not_a_kernel_has_its_name_and_the_reason() {
    let mut other_machine = PV.to_vec();
    other_machine[18] = 183;
    let mut half = BARE.to_vec();
    half[4] = 1;
    let program = std::fs::read(env!("CARGO_BIN_EXE_paravane")).unwrap_or_default();
    let files: [(&str, &[u8], &str); 8] = [
        ("empty", b"", "the image is empty"),
        ("garbage", &[0x5a; 4096], "not an ELF file"),
        ("script", b"#!/bin/sh\n", "it is a script"),
        ("headers", &PV[..100], "cut off"),
        ("truncated", &PV[..0x2000], "cut off"),
        ("arm", &other_machine, "64-bit Arm"),
        ("half", &half, "32-bit"),
        ("program", &program, "not a guest"),
    ];
    for (name, bytes, wrong) in files {
        let file = Temporary::new(name, bytes);
        let path = file.0.to_string_lossy();
        let ran = run(&[&path], b"");
        ran.must_end(1).must_say(&format!("paravane: {path}: ")).must_say(wrong);
        ran.must(ran.out.is_empty(), "should have printed nothing");
    }
}

#[test]
fn a_kernel_that_does_not_fit_says_how_much_it_needs() {
    for options in everywhere() {
        let ran = run(&[&options[..], &["--mem", "1M"]].concat(), b"");
        ran.must_end(1).must_say("raise --mem to ");
    }
}
