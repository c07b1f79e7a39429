//! The program as its users run it: exit statuses, messages, disks, limits, and machines without KVM.
//!
//! Failures begin with "broken product" or "broken test". Tests of features that the machine lacks are skipped, with a
//! line that bypasses the harness's capture.

mod container;
mod disk;
mod disk_errors;
mod endings;
mod files;
mod flushed;
mod memory_limits;
mod no_kvm;
#[path = "../../src/testing/skip.rs"]
mod skip;

use std::fmt::Display;
use std::io::Write;
use std::process::{Command, Stdio};

use skip::skip;

/// The time limit for a guest that ends by itself: a guard against hangs.
const PATIENCE: &str = "60s";

/// The outcome of the program.
#[derive(Debug)]
struct Ran {
    command: String,
    code: Option<i32>,
    out: String,
    err: String,
}

/// `paravane run` with `args`.
fn paravane(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg("run").args(["--timeout", PATIENCE]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end with `typed` on its standard input.
fn ran(mut command: Command, typed: &[u8]) -> std::io::Result<Ran> {
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // If the program ends before it has read everything, its end decides about success.
        let _ = stdin.write_all(typed);
    }
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    Ok(Ran { command: format!("{command:?}"), code: output.status.code(), out, err })
}

fn run(args: &[&str], typed: &[u8]) -> Ran {
    match ran(paravane(env!("CARGO_BIN_EXE_paravane"), args), typed) {
        Ok(ran) => ran,
        Err(error) => panic!("broken test: the program cannot be run: {error}"),
    }
}

impl Ran {
    #[track_caller]
    fn must(&self, holds: bool, what: impl Display) -> &Self {
        let Self { command, code, out, err } = self;
        assert!(
            holds,
            "broken product: it {what}\n{command}\nstatus: {code:?}\nstandard output:\n{out}\nerror:\n{err}"
        );
        self
    }

    #[track_caller]
    fn must_end(&self, code: i32) -> &Self {
        self.must(self.code == Some(code), format_args!("should have ended with {code}"))
    }

    #[track_caller]
    fn must_print(&self, part: &str) -> &Self {
        self.must(self.out.contains(part), format_args!("should have printed {part:?}"))
    }

    /// Checks that the first line on standard error begins so, and that what the vCPU was doing follows.
    #[track_caller]
    fn must_explain(&self, part: &str) -> &Self {
        let mut lines = self.err.lines();
        let said = lines.next().is_some_and(|line| line.starts_with(part));
        let explained = lines.any(|line| line.starts_with("  vCPU 0 ") || line == "  vCPU 0:");
        self.must(said && explained, format_args!("should have said {part:?}, and what its vCPU was doing"))
    }

    /// Checks for `part` in one line on standard error.
    #[track_caller]
    fn must_say(&self, part: &str) -> &Self {
        let said = self.err.lines().any(|line| line.contains(part));
        self.must(
            said && self.err.lines().count() == 1,
            format_args!("should have said {part:?} and no more"),
        )
    }
}

/// The engines that work on this machine, without `auto`.
fn engines() -> Vec<&'static str> {
    let works = |engine: &&str| {
        let ran = run(&["--engine", engine, "--cmdline", "test=paging"], b"");
        let absent = ran.code == Some(1);
        if absent {
            skip(engine, ran.err.trim_end());
        }
        !absent
    };
    ["kvm", "process"].into_iter().filter(works).collect()
}

/// Options for both built-in guests on every engine that works on this machine.
fn everywhere() -> Vec<Vec<&'static str>> {
    let both = |engine| [vec!["--engine", engine], vec!["--engine", engine, "--bare"]];
    engines().into_iter().flat_map(both).collect()
}
