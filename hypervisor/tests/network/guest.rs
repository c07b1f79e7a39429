//! A guest in its own process, and its console.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use super::skip;

/// A guard against hangs: longer than any guest of these tests takes.
const PATIENCE: &str = "120s";

/// A guest.
pub struct Guest {
    pub child: Child,
    what: String,
    /// Dropped by [`Guest::end`].
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    said: String,
}

/// Options for both builds of the reference guest on every engine that works here.
pub fn everywhere() -> &'static [Vec<&'static str>] {
    static ALL: OnceLock<Vec<Vec<&'static str>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let works = |engine: &&str| {
            let options = ["--engine", engine, "--cmdline", "test=paging"];
            let output = run(&options).stdin(Stdio::null()).output();
            let output = output.unwrap_or_else(|e| panic!("broken test: the program cannot be run: {e}"));
            let absent = output.status.code() == Some(1);
            if absent {
                skip(engine, String::from_utf8_lossy(&output.stderr).trim_end());
            }
            !absent
        };
        let both = |engine| [vec!["--engine", engine], vec!["--engine", engine, "--bare"]];
        ["kvm", "process"].into_iter().filter(works).flat_map(both).collect()
    })
}

fn run(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command.args(["run", "--timeout", PATIENCE]).args(options);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Guest {
    pub fn start(options: &[&str], more: &[&str]) -> Self {
        let mut command = run(options);
        command.args(more);
        let what = format!("{options:?} {more:?}");
        let mut child =
            command.spawn().unwrap_or_else(|e| panic!("broken test: the program cannot be run: {e}"));
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stdout = BufReader::new(stdout.unwrap_or_else(|| panic!("broken test: no standard output")));
        Self { child, what, stdin, stdout, said: String::new() }
    }

    /// Types text.
    pub fn type_in(&mut self, text: &str) {
        let Some(stdin) = &mut self.stdin else { panic!("broken test: its input is closed") };
        stdin.write_all(text.as_bytes()).unwrap_or_else(|e| panic!("broken product: it is gone: {e}"));
    }

    /// Takes its input, so that [`Guest::finish`] does not close it.
    pub fn keep_input(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Waits for a line with `part`, and returns the line; `None` at the end of the output.
    pub fn line_with(&mut self, part: &str) -> Option<String> {
        loop {
            let mut line = Vec::new();
            let count = self.stdout.read_until(b'\n', &mut line).unwrap_or(0);
            if count == 0 {
                return None;
            }
            let line = String::from_utf8_lossy(&line).into_owned();
            self.said.push_str(&line);
            if line.contains(part) {
                return Some(line);
            }
        }
    }

    /// Like [`Guest::line_with`], but fails if there is no such line.
    #[track_caller]
    pub fn must_say(&mut self, part: &str) -> String {
        match self.line_with(part) {
            Some(line) => line,
            None => {
                let (status, error) = self.finish();
                let (what, said) = (&self.what, &self.said);
                panic!(
                    "broken product: it should have said {part:?}\n{what}\n{status}\nsaid:\n{said}\nerror:\n{error}"
                )
            }
        }
    }

    /// Waits for its end. Returns its status and its standard error.
    pub fn finish(&mut self) -> (ExitStatus, String) {
        self.stdin = None;
        let mut rest = String::new();
        let _ = self.stdout.read_to_string(&mut rest);
        self.said.push_str(&rest);
        let mut error = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut error);
        }
        (self.child.wait().unwrap_or_else(|e| panic!("broken test: {e}")), error)
    }

    /// Types `text`, after which the guest must end with success and without error messages.
    #[track_caller]
    pub fn end(mut self, text: &str) {
        self.type_in(text);
        let (status, error) = self.finish();
        let (what, said) = (&self.what, &self.said);
        assert!(
            status.success() && error.is_empty(),
            "broken product: {what}: {status}\nsaid:\n{said}\nerror:\n{error}"
        );
    }
}

impl Drop for Guest {
    /// Leaves no process running after a failure.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
