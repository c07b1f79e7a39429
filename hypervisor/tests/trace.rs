//! Traces from outside: written by a run, shown by `paravane trace`.
//!
//! Tests that need a guest are skipped on machines that cannot run one.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use skip::skip;

/// A directory of a test's own, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("paravane-trace-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn paravane(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
        command.args(args).current_dir(&self.0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.paravane(args).output().unwrap()
    }

    /// Runs a guest of the process engine to its end; `false` if there can be none here.
    fn ran(&self, args: &[&str]) -> bool {
        let output = self.output(&[&["run", "--engine", "process", "--timeout", "60s"], args].concat());
        match output.status.code() {
            Some(0) => true,
            Some(1) if !text(&output.stderr).contains("trace") => {
                skip("process", text(&output.stderr));
                false
            }
            other => panic!("{args:?} ended with {other:?}: {}", text(&output.stderr)),
        }
    }

    /// What `paravane trace` prints as JSON.
    fn json(&self, args: &[&str]) -> Value {
        let output = self.output(&[&["trace", "t", "--json"], args].concat());
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{args:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// How `paravane trace` fails, and what it says.
    fn failure(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.output(&[&["trace"], args].concat());
        (output.status.code(), text(&output.stderr))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Name, count and time of rows, in order of their names.
fn rows(list: &Value, name: &str) -> Vec<(String, u64, u64)> {
    let row = |row: &Value| {
        (row[name].as_str().unwrap().to_owned(), row["count"].as_u64().unwrap(), row["ns"].as_u64().unwrap())
    };
    let mut rows: Vec<_> = list.as_array().unwrap().iter().map(row).collect();
    rows.sort();
    rows
}

#[test]
fn a_trace_adds_up_to_the_statistics() {
    let scratch = Scratch::new("statistics");
    for kind in [&[][..], &["--bare"]] {
        let run = ["--cmdline", "bench=null-call", "--trace", "t", "--stats-json", "s"];
        if !scratch.ran(&[kind, &run].concat()) {
            return;
        }
        let statistics: Value = serde_json::from_slice(&std::fs::read(scratch.0.join("s")).unwrap()).unwrap();
        let whole = scratch.json(&[]);
        assert_eq!(rows(&whole["by"]["cause"], "name"), rows(&statistics["whole"]["exits"], "cause"));
        assert_eq!((&whole["whole"], &whole["exits_lost"]), (&true.into(), &0.into()));
        let region = scratch.json(&["--marks"]);
        assert_eq!(rows(&region["by"]["cause"], "name"), rows(&statistics["region"]["exits"], "cause"));
    }
}

#[test]
fn exits_are_found_in_the_functions_that_caused_them() {
    let scratch = Scratch::new("functions");
    for (kind, cause, function) in
        [(&[][..], "xen_version", "version"), (&["--bare"], "mov from cr", "null_call")]
    {
        if !scratch.ran(&[kind, &["--cmdline", "bench=null-call", "--trace", "t"]].concat()) {
            return;
        }
        let exits = scratch.json(&["--marks", "--cause", cause]);
        let symbols = rows(&exits["by"]["symbol"], "name");
        assert!(symbols.len() == 1 && symbols[0].1 == 1000, "{symbols:?}");
        assert!(symbols[0].0.contains(function), "{symbols:?}");
        assert_eq!(scratch.json(&["--marks", "--symbol", function])["exits"], 1000);
    }
}

/// Where code of ours runs in the kernel's place, it is the kernel's address that counts.
#[test]
fn no_technique_says_an_address_that_is_not_the_guests() {
    let scratch = Scratch::new("techniques");
    for technique in ["trap", "patch", "translate"] {
        if !scratch.ran(&["--technique", technique, "--cmdline", "bench=null-call", "--trace", "t"]) {
            return;
        }
        let symbols = rows(&scratch.json(&[])["by"]["symbol"], "name");
        let strange: Vec<_> = symbols.iter().filter(|(name, ..)| name.starts_with("0x")).collect();
        assert!(symbols.len() > 5 && strange.is_empty(), "{technique}: {strange:?}");
    }
}

#[test]
fn an_image_is_only_believed_if_it_is_the_one_that_ran() {
    let scratch = Scratch::new("image");
    let guest = scratch.0.join("guest.elf");
    let builtin = paravane::image::GuestKind::Pv.builtin();
    std::fs::write(&guest, builtin).unwrap();
    if !scratch.ran(&["guest.elf", "--cmdline", "bench=null-call", "--trace", "t"]) {
        return;
    }
    let calls = ["--cause", "xen_version", "--json"];
    let output = |args: &[&str]| scratch.output(&[&["trace", "t"], args, &calls].concat());
    let here = output(&[]);
    assert!(text(&here.stdout).contains("version::version") && here.stderr.is_empty(), "found where it was");
    std::fs::write(&guest, [builtin, b"another build"].concat()).unwrap();
    let changed = output(&[]);
    assert!(text(&changed.stderr).contains("--image") && changed.status.success());
    assert!(!text(&changed.stdout).contains("version::version"), "only addresses");
    let (status, said) = scratch.failure(&["t", "--symbol", "version"]);
    assert!(status == Some(1) && said.contains("--image"), "{said}");
    let given = output(&["--image", "guest.elf"]);
    assert!(text(&given.stderr).contains("not the file that was traced") && given.status.success());
    assert!(text(&given.stdout).contains("version::version"));
}

#[test]
fn a_killed_run_leaves_a_trace_up_to_then() {
    let scratch = Scratch::new("killed");
    let args = [
        "run",
        "--engine",
        "process",
        "--timeout",
        "60s",
        "--cmdline",
        "bench=null-call forever",
        "--trace",
        "t",
    ];
    let mut child = scratch.paravane(&args).stdin(Stdio::piped()).spawn().unwrap();
    let file = scratch.0.join("t");
    let size = || std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
    while size() < 12 && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    if let Some(status) = child.try_wait().unwrap()
        && status.code() == Some(1)
    {
        return skip("process", "the engine does not work here");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let whole = std::fs::read(&file).unwrap();
    // However far it came, a cut is one.
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    let (status, said) = scratch.failure(&["t"]);
    assert!(status == Some(1) && (said.contains("cut off") || said.contains("beginning")), "{said}");
}

#[test]
fn what_is_no_trace_is_refused_with_what_to_do() {
    let scratch = Scratch::new("refused");
    std::fs::write(scratch.0.join("text"), "no trace").unwrap();
    for (args, status, said) in [
        (&["text"][..], 1, "paravane run --trace FILE"),
        (&["missing"], 1, "No such file"),
        (&["."], 1, "directory"),
        (&["text", "--chrome", "text"], 2, "are both given"),
        (&["text", "--timeline", "--by", "cause"], 2, "cannot be used with"),
        (&["text", "--from", "1 week"], 2, "unknown unit"),
        (&[], 2, "FILE"),
    ] {
        let (code, stderr) = scratch.failure(args);
        assert!(code == Some(status) && stderr.contains(said), "{args:?} ended with {code:?}: {stderr}");
    }
    assert_eq!(std::fs::read(scratch.0.join("text")).unwrap(), b"no trace");
}

#[test]
fn an_unknown_cause_is_a_mistake_of_the_command_line() {
    let scratch = Scratch::new("cause");
    if scratch.ran(&["--cmdline", "bench=null-call", "--trace", "t"]) {
        let (status, said) = scratch.failure(&["t", "--cause", "nonsense"]);
        assert!(status == Some(2) && said.contains("nonsense") && said.contains("without --cause"), "{said}");
    }
}

#[test]
fn a_trace_may_come_through_a_pipe_and_go_into_one() {
    let scratch = Scratch::new("pipe");
    if !scratch.ran(&["--cmdline", "bench=null-call", "--trace", "t"]) {
        return;
    }
    let file = || File::open(scratch.0.join("t")).unwrap();
    let from_pipe = scratch.paravane(&["trace", "-", "--json"]).stdin(file()).output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&from_pipe.stdout).unwrap(), scratch.json(&[]));
    let mut reader = scratch.paravane(&["trace", "t", "--timeline"]).spawn().unwrap();
    drop(reader.stdout.take());
    let output = reader.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "", "whoever reads may stop reading");
}

#[test]
fn a_trace_that_cannot_be_written_is_said_and_the_guest_runs_all_the_same() {
    let scratch = Scratch::new("full");
    let args = ["run", "--engine", "process", "--timeout", "60s", "--cmdline", "bench=null-call", "--trace"];
    let output = scratch.output(&[&args[..], &["/dev/full"]].concat());
    let said = text(&output.stderr);
    if output.status.code() == Some(1) && !said.contains("trace") {
        return skip("process", said);
    }
    assert!(text(&output.stdout).contains("ok=true"), "{said}");
    assert!(
        output.status.code() == Some(1) && said.contains("/dev/full") && said.contains("No space"),
        "{said}"
    );
    let (status, said) = {
        let output = scratch.output(&[&args[..], &["no/such/directory/t"]].concat());
        (output.status.code(), text(&output.stderr))
    };
    assert!(status == Some(1) && said.contains("cannot write a trace to no/such/directory/t"), "{said}");
}

#[test]
fn a_run_that_does_not_start_leaves_an_older_trace_alone() {
    let scratch = Scratch::new("older");
    std::fs::write(scratch.0.join("image"), "no kernel").unwrap();
    std::fs::write(scratch.0.join("t"), "older").unwrap();
    for file in ["t", "new"] {
        let output = scratch.output(&["run", "image", "--trace", file]);
        assert_eq!(output.status.code(), Some(1));
    }
    assert_eq!(std::fs::read(scratch.0.join("t")).unwrap(), b"older");
    assert!(!scratch.0.join("new").exists());
}

/// Numbers, and the units and columns that go with their sizes, are not the same in any two runs.
fn without_numbers(line: &str) -> String {
    let mut out = String::new();
    for word in line.split_whitespace() {
        let is_unit = ["ns", "us", "ms", "s"].contains(&word.trim_end_matches(','));
        let mut digits = false;
        if !is_unit {
            out.push(' ');
            for c in word.chars() {
                let is_digit =
                    c.is_ascii_digit() || (digits && ".x".contains(c)) || (digits && c.is_ascii_hexdigit());
                if !is_digit {
                    out.push(c);
                } else if !digits {
                    out.push('#');
                }
                digits = is_digit;
            }
        }
    }
    out
}

/// Runs the commands of `docs/trace.md`, and compares what they print with what is printed there.
#[test]
fn the_chapters_example_is_what_happens() {
    let scratch = Scratch::new("chapter");
    let chapter = include_str!("../../docs/trace.md");
    let mut commands: Vec<(&str, Vec<&str>)> = Vec::new();
    for block in chapter.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        for line in block.lines() {
            match (line.strip_prefix("$ paravane "), commands.last_mut()) {
                (Some(command), _) => commands.push((command, Vec::new())),
                (None, Some((_, output))) => output.push(line),
                (None, None) => panic!("output before a command: {line}"),
            }
        }
    }
    assert!(commands.len() >= 4, "{commands:?}");
    for (number, (command, expected)) in commands.iter().enumerate() {
        let args: Vec<&str> = command.split_whitespace().collect();
        let output = scratch.output(&args);
        let (printed, said) = (text(&output.stdout), text(&output.stderr));
        if number == 0 && output.status.code() == Some(1) {
            return skip("process", said);
        }
        assert!(output.status.success(), "{command}: {said}");
        let lines: Vec<String> = printed.lines().chain(said.lines()).map(without_numbers).collect();
        for line in expected.iter().filter(|line| !line.trim().is_empty() && **line != "...") {
            let wanted = without_numbers(line);
            assert!(lines.contains(&wanted), "{command}: {wanted:?} is not in\n{printed}{said}");
        }
    }
}
