//! What supervisors and administrators use: options from a file, events, completions and manual pages.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use skip::skip;

fn paravane(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(args: &[&str]) -> Output {
    paravane(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file of this test's own, which goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, contents: &str) -> Self {
        let path = std::env::temp_dir().join(format!("paravane-operation-{}-{name}", std::process::id()));
        fs::write(&path, contents).unwrap();
        Self(path)
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// What the guest of a run printed; `None` if this machine cannot run guests.
fn printed(args: &[&str]) -> Option<String> {
    let output = output(&[&["run", "--timeout", "60s"], args].concat());
    if output.status.code() == Some(1) {
        skip("engine", text(&output.stderr));
        return None;
    }
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    Some(text(&output.stdout))
}

#[test]
fn a_file_of_options_stands_before_the_command_line() {
    let file =
        Scratch::new("options.toml", "# a greeting\nmem = \"32M\"\ncmdline = \"no-such-word\"\nrng = true\n");
    let Some(said) = printed(&["--config", file.name(), "--cmdline", "bench=null-call"]) else { return };
    assert!(said.contains("null-call") && !said.contains("no-such-word"), "{said}");
}

#[test]
fn a_mistake_in_a_file_of_options_is_named_by_file_and_line() {
    for (contents, place, what) in [
        ("mem = \"32M\"\nmme = 1\n", ":2: ", "there is no option `mme`; there are: "),
        ("mem = \n", ":1: ", ""),
        ("timeout = \"soon\"\n", "", "--timeout"),
        ("image = \"a.elf\"\nbare = true\n", "", "cannot be used with"),
    ] {
        let file = Scratch::new("wrong.toml", contents);
        let output = output(&["run", "--config", file.name()]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("{}{place}", file.name())) && said.contains(what), "{said}");
    }
    let output = output(&["run", "--config", "/nonexistent/options.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("cannot read the options in /nonexistent/options.toml: No such file")
    );
}

#[test]
fn a_supervisor_learns_what_becomes_of_a_run() {
    let (reader, writer) = std::io::pipe().unwrap();
    let number = writer.as_raw_fd();
    let mut command = paravane(&["run", "--timeout", "60s", "--events", "9"]);
    command.stdin(Stdio::piped());
    // SAFETY: dup2 is async-signal-safe; the descriptor is open until the child has been started.
    unsafe {
        command.pre_exec(move || match libc::dup2(number, 9) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let mut child = command.spawn().unwrap();
    drop(writer);
    child.stdin.take().unwrap().write_all(b"panic\n").unwrap();
    let lines: Vec<Value> =
        BufReader::new(reader).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    let output = child.wait_with_output().unwrap();
    if output.status.code() == Some(1) {
        return skip("engine", text(&output.stderr));
    }
    let names: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["starting", "started", "first-output", "ended"], "{}", text(&output.stderr));
    assert_eq!(lines[0]["image"], "built-in guest");
    assert_eq!(lines[1]["technique"], "pv");
    let status = output.status.code().unwrap();
    assert_eq!((status, &lines[3]["status"]), (3, &status.into()));
    assert!(lines.is_sorted_by_key(|line| line["ns"].as_u64().unwrap()));
}

#[test]
fn a_run_that_cannot_start_has_ended_and_a_missing_descriptor_is_named() {
    let events = Scratch::new("events", "");
    let image = Scratch::new("image", "no kernel");
    let started = output(&["run", image.name(), "--events", events.name()]);
    assert_eq!(started.status.code(), Some(1));
    let mut told = String::new();
    fs::File::open(&events.0).unwrap().read_to_string(&mut told).unwrap();
    let last: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["status"]), (&"ended".into(), &1.into()), "{told}");
    let missing = output(&["run", "--events", "77"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        text(&missing.stderr).contains("cannot write events to descriptor 77: "),
        "{}",
        text(&missing.stderr)
    );
}

#[test]
fn whatever_ends_a_run_that_has_begun_is_told_once_as_it_was() {
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    for (name, args, stdout, status, reason) in [
        ("disk", &["--disk", "/nonexistent/disk"][..], Stdio::piped(), 1, "/nonexistent/disk"),
        (
            "json",
            &["--stats-json", "/dev/full", "--cmdline", "bench=null-call"],
            Stdio::null(),
            1,
            "/dev/full",
        ),
        ("output", &["--cmdline", "bench=null-call"], full(), 1, "console output was lost: No space left"),
        ("good", &["--cmdline", "bench=null-call"], Stdio::null(), 0, "the guest powered off"),
    ] {
        let events = Scratch::new(&format!("events-{name}"), "");
        let mut command = paravane(&["run", "--timeout", "60s", "--events", events.name()]);
        let output = command.args(args).stdout(stdout).output().unwrap();
        let told = fs::read_to_string(&events.0).unwrap();
        let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        if name != "disk" && !names.contains(&"started") {
            skip("engine", text(&output.stderr));
            continue;
        }
        assert_eq!(
            (names[0], names.iter().filter(|name| **name == "ended").count()),
            ("starting", 1),
            "{told}"
        );
        let last = lines.last().unwrap();
        assert_eq!(output.status.code(), Some(status), "{name}: {}", text(&output.stderr));
        assert_eq!((&last["event"], &last["status"]), (&"ended".into(), &status.into()), "{told}");
        assert!(last["reason"].as_str().unwrap().contains(reason), "{told}");
    }
}

#[test]
fn shells_and_man_get_what_the_command_line_knows() {
    for shell in ["bash", "zsh", "fish"] {
        let output = output(&["completions", shell]);
        assert!(output.status.success() && text(&output.stdout).contains("stats-json"), "{shell}");
    }
    // The script is one that the shell takes.
    if let Ok(mut bash) = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn() {
        let script = output(&["completions", "bash"]).stdout;
        bash.stdin.take().unwrap().write_all(&script).unwrap();
        assert!(bash.wait().unwrap().success());
    }
    let page = output(&["man", "run"]);
    assert!(text(&page.stdout).contains(".TH paravane-run 1"), "{}", text(&page.stderr));
    let wrong = output(&["man", "fly"]);
    assert!(wrong.status.code() == Some(1) && text(&wrong.stderr).contains("there are: run, new"));
    let directory = std::env::temp_dir().join(format!("paravane-man-{}", std::process::id()));
    assert!(output(&["man", "--all", directory.to_str().unwrap()]).status.success());
    for page in ["paravane.1", "paravane-run.1", "paravane-compare.1"] {
        assert!(directory.join(page).exists(), "{page}");
    }
    fs::remove_dir_all(directory).unwrap();
}

/// The files of docs/operation/ are used as they are, so they must be right.
#[test]
fn the_example_of_a_file_of_options_runs() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operation/guest.toml");
    let Some(said) = printed(&["--config", file]) else { return };
    assert!(said.contains("bench: name=null-call"), "{said}");
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operation/paravane@.service");
    let directory = std::env::temp_dir().join(format!("paravane-unit-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    // The program need not be installed: its own path is put in.
    let text_of_unit = fs::read_to_string(unit).unwrap();
    assert!(text_of_unit.contains("/usr/local/bin/paravane run --config"));
    let here = directory.join("paravane@guest.service");
    fs::write(&here, text_of_unit.replace("/usr/local/bin/paravane", env!("CARGO_BIN_EXE_paravane")))
        .unwrap();
    let verified = Command::new("systemd-analyze").arg("verify").arg(&here).output();
    fs::remove_dir_all(directory).unwrap();
    match verified {
        Err(_) => skip("systemd-analyze", "not installed (package systemd)"),
        Ok(output) => {
            // Whether its manual page is installed does not matter here.
            let said = text(&output.stderr);
            let complaints = said.lines().filter(|line| line.contains("paravane@guest.service:"));
            let complaints: Vec<&str> =
                complaints.filter(|line| !line.contains("man paravane-run")).collect();
            assert!(complaints.is_empty(), "{complaints:?}");
        }
    }
}
