//! A guest for each test.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::Context;

use super::super::status;
use crate::image::test_list::GuestTest;

/// Ends a test that does not end by itself. An option of the runner overrides it.
const TIMEOUT: [&str; 2] = ["--timeout", "60s"];

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed { output: Vec<u8> },
    Ignored,
    Failed { status: u8, why: &'static str, output: Vec<u8> },
}

/// How guests are started.
pub(super) struct Each<'a> {
    program: PathBuf,
    options: &'a [OsString],
    image: &'a OsStr,
    no_capture: bool,
}

impl<'a> Each<'a> {
    pub(super) fn new(options: &'a [OsString], image: &'a OsStr, no_capture: bool) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        Ok(Self { program, options, image, no_capture })
    }

    /// Runs all tests that are not skipped, `threads` at a time, and tells of each when it has ended.
    pub(super) fn run<'t>(
        &self,
        tests: &'t [GuestTest],
        threads: usize,
        skips: impl Fn(&GuestTest) -> bool,
        mut tell: impl FnMut(&'t GuestTest, Outcome),
    ) {
        let (skipped, run): (Vec<_>, Vec<_>) = tests.iter().partition(|test| skips(test));
        skipped.into_iter().for_each(|test| tell(test, Outcome::Ignored));
        let next = AtomicUsize::new(0);
        let (send, receive) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..threads.min(run.len()) {
                let (send, next, run) = (send.clone(), &next, &run);
                scope.spawn(move || {
                    while let Some(test) = run.get(next.fetch_add(1, Ordering::Relaxed)) {
                        // The receiver lives until all senders are gone.
                        let _ = send.send((*test, self.one(test)));
                    }
                });
            }
            drop(send);
            receive.iter().for_each(|(test, outcome)| tell(test, outcome));
        });
    }

    fn one(&self, test: &GuestTest) -> Outcome {
        match self.boot(test) {
            Ok((status, output)) => judge(test.should_panic, status, output),
            Err(error) => Outcome::Failed {
                status: status::HOST_ERROR,
                why: " (the host failed)",
                output: format!("cannot start {}: {error}\n", self.program.display()).into_bytes(),
            },
        }
    }

    /// The exit status, and what guest and host printed, in the order in which they did.
    fn boot(&self, test: &GuestTest) -> io::Result<(u8, Vec<u8>)> {
        let mut command = Command::new(&self.program);
        command.arg("run").args(TIMEOUT).args(self.options);
        command.arg("--cmdline").arg(format!("test={}", test.name)).arg(self.image);
        command.stdin(Stdio::null());
        let mut output = Vec::new();
        let status = if self.no_capture {
            command.status()?
        } else {
            let (mut reader, writer) = io::pipe()?;
            command.stdout(writer.try_clone()?).stderr(writer);
            let mut child = command.spawn()?;
            // The pipe ends when no process has its other end: this one's are in `command`.
            drop(command);
            reader.read_to_end(&mut output)?;
            child.wait()?
        };
        let killed = status::SIGNAL_BASE;
        Ok((status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(killed), output))
    }
}

/// What an exit status of `run` means for a test.
fn judge(should_panic: bool, status: u8, output: Vec<u8>) -> Outcome {
    let failed = |status, why, output| Outcome::Failed { status, why, output };
    match (status, should_panic) {
        (0, false) | (status::GUEST_CRASH, true) => Outcome::Passed { output },
        (0, true) => failed(status::GUEST_CRASH, " (should have panicked)", output),
        (status::GUEST_CRASH, false) => failed(status, "", output),
        (status::KILLED, _) => failed(status, " (killed by the hypervisor)", output),
        (status::TIMEOUT, _) => failed(status, " (timed out)", output),
        (status::HOST_ERROR | status::USAGE, _) => failed(status, " (the host failed)", output),
        _ => failed(status, " (ended otherwise)", output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_expected_end_passes() {
        let passes =
            |should_panic, status| matches!(judge(should_panic, status, Vec::new()), Outcome::Passed { .. });
        let passing =
            |should_panic| (0..=u8::MAX).filter(|status| passes(should_panic, *status)).collect::<Vec<_>>();
        assert_eq!(passing(false), [0]);
        assert_eq!(passing(true), [status::GUEST_CRASH], "a guest that is killed has not panicked");
        for status in 0..=u8::MAX {
            if let Outcome::Failed { status, .. } = judge(true, status, Vec::new()) {
                assert_ne!(status, 0);
            }
        }
    }
}
