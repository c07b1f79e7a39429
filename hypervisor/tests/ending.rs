//! `--timeout` and signals end a run, whatever it waits for.
//!
//! No test here measures time. A run that does not end is killed after [`PATIENCE`], and the test fails.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use skip::skip;

/// A guard against hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const MACHINES: [&[&str]; 3] = [&["--engine", "kvm"], &["--engine", "process"], &["--bare"]];

fn run(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command.arg("run").args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn signal(pid: u32, number: libc::c_int) {
    // SAFETY: kill takes no pointers; the callers have not waited for the process yet.
    assert_eq!(unsafe { libc::kill(libc::pid_t::try_from(pid).unwrap(), number) }, 0);
}

/// Waits for a program. Returns its status, and its standard error if that is a pipe.
fn end_of(mut child: Child) -> (ExitStatus, String) {
    let (pid, mut stderr) = (child.id(), child.stderr.take());
    let (told, heard) = channel();
    let thread = std::thread::spawn(move || {
        let status = child.wait().unwrap();
        let _ = told.send(());
        status
    });
    if heard.recv_timeout(PATIENCE).is_err() {
        signal(pid, libc::SIGKILL);
    }
    let (status, mut said) = (thread.join().unwrap(), String::new());
    stderr.iter_mut().for_each(|stderr| drop(stderr.read_to_string(&mut said)));
    (status, said)
}

/// A pipe with the capacity of a page, for a reader that does not read.
fn small_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    // SAFETY: an open descriptor, and a number.
    assert!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) } > 0);
    (reader, writer)
}

/// The number of unread bytes in a pipe.
fn waiting(reader: &PipeReader) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: an open descriptor, and the int that this request fills.
    assert_eq!(unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &raw mut count) }, 0);
    usize::try_from(count).unwrap()
}

/// Standard input with so many commands that the answers do not fit into a pipe.
fn many_commands() -> File {
    let mut file = tempfile("commands");
    file.write_all("help\n".repeat(3000).as_bytes()).unwrap();
    file.rewind().unwrap();
    file
}

fn path_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("paravane-ending-{name}-{}", std::process::id()))
}

/// A file without a name.
fn tempfile(name: &str) -> File {
    let path = path_of(&format!("{name}-{:?}", std::thread::current().id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

/// Whether the machine lacks the engine; reports it.
fn missing(status: ExitStatus, said: &str) -> bool {
    let missing = status.code() == Some(1) && (said.contains("KVM") || said.contains("process"));
    if missing {
        skip("engine", said.trim());
    }
    missing
}

#[test]
fn the_time_limit_holds_while_nobody_reads_standard_output() {
    for machine in MACHINES {
        let (reader, writer) = small_pipe();
        let args = [&["--timeout", "3s"], machine].concat();
        let child = run(&args).stdin(many_commands()).stdout(writer).spawn().unwrap();
        let (status, said) = end_of(child);
        if missing(status, &said) {
            continue;
        }
        assert_eq!(status.code(), Some(124), "{machine:?}: {status}: {said}");
        assert!(said.contains("timed out; nobody reads standard output"), "{machine:?}: {said}");
        assert!(waiting(&reader) > 3000, "the pipe had room: {}", waiting(&reader));
    }
}

/// The run ends in order, although nobody reads its message about it, either.
#[test]
fn the_time_limit_holds_while_nobody_reads_standard_error() {
    let statistics = path_of("unread.json");
    let (reader, writer) = small_pipe();
    let args = ["--timeout", "3s", "--stats", "--stats-json", statistics.to_str().unwrap()];
    let both = writer.try_clone().unwrap();
    let child = run(&args).stdin(many_commands()).stdout(writer).stderr(both).spawn().unwrap();
    let (status, _) = end_of(child);
    if status.code() == Some(1) {
        return skip("engine", "no engine works here");
    }
    assert_eq!(status.code(), Some(124), "{status}");
    assert!(waiting(&reader) > 3000, "the pipe had room: {}", waiting(&reader));
    let written = std::fs::read_to_string(&statistics).unwrap();
    std::fs::remove_file(statistics).unwrap();
    assert!(written.contains("\"whole\""), "the run did not end in order: {written}");
}

/// Sends the signal at several moments, some of them just before the write that blocks.
#[test]
fn no_signal_is_lost_while_nobody_reads_standard_output() {
    for machine in MACHINES {
        for full_by in (200..4000).step_by(700) {
            let (reader, writer) = small_pipe();
            let args = [&["--timeout", "50s"], machine].concat();
            let child = run(&args).stdin(many_commands()).stdout(writer).spawn().unwrap();
            while waiting(&reader) < full_by && Path::new(&format!("/proc/{}/exe", child.id())).exists() {
                std::thread::yield_now();
            }
            signal(child.id(), libc::SIGTERM);
            let (status, said) = end_of(child);
            if missing(status, &said) {
                break;
            }
            assert_eq!(status.code(), Some(128 + libc::SIGTERM), "{machine:?} {full_by}: {status}: {said}");
        }
    }
}

/// Waits until a program has a thread of this name, and returns its ID.
fn thread_of(child: &mut Child, name: &str) -> Option<libc::pid_t> {
    let tasks = format!("/proc/{}/task", child.id());
    while child.try_wait().unwrap().is_none() {
        for task in std::fs::read_dir(&tasks).unwrap().flatten() {
            let comm = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if comm.trim_end() == name {
                return task.file_name().to_str()?.parse().ok();
            }
        }
        std::thread::yield_now();
    }
    None
}

/// A signal may be delivered to any thread: here to one that does not wait for the reader.
#[test]
fn a_signal_that_another_thread_receives_ends_the_wait_of_the_vcpu() {
    for machine in MACHINES {
        let (_reader, writer) = small_pipe();
        let args = [&["--timeout", "50s"], machine].concat();
        let mut child = run(&args).stdin(many_commands()).stdout(writer).spawn().unwrap();
        let Some(keyboard) = thread_of(&mut child, "console input") else {
            let (status, said) = end_of(child);
            assert!(missing(status, &said), "{machine:?}: {status}: {said}");
            continue;
        };
        let (pid, call) =
            (libc::pid_t::try_from(child.id()).unwrap(), format!("/proc/{}/syscall", child.id()));
        let write = format!("{} ", libc::SYS_write);
        // Twice in a row: the thread is blocked in write(2).
        let mut before = String::new();
        loop {
            let Ok(now) = std::fs::read_to_string(&call) else {
                child.kill().unwrap();
                end_of(child);
                return skip("proc-syscall", "this kernel does not show what a thread waits for");
            };
            if now.starts_with(&write) && now == before {
                break;
            }
            before = now;
            std::thread::sleep(Duration::from_millis(20));
        }
        // SAFETY: only numbers; the process has not been waited for.
        assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, pid, keyboard, libc::SIGTERM) }, 0);
        let (status, said) = end_of(child);
        assert_eq!(status.code(), Some(128 + libc::SIGTERM), "{machine:?}: {status}: {said}");
    }
}

#[test]
fn the_time_limit_holds_before_the_guest_runs() {
    let pipe = path_of("unread.pipe");
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: a NUL-terminated string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    // Nobody opens it for reading.
    let args = ["--stats-json", pipe.to_str().unwrap()];
    let (status, said) = end_of(run(&[&args[..], &["--timeout", "500ms"]].concat()).spawn().unwrap());
    assert_eq!(status.code(), Some(124), "{status}: {said}");
    assert_eq!(said, "paravane: timed out before the guest ran\n");
    let child = run(&args).spawn().unwrap();
    signal(child.id(), libc::SIGTERM);
    let (status, said) = end_of(child);
    // This early, the signal's default action may still be in place.
    let by_signal = status.code() == Some(128 + libc::SIGTERM) || status.signal() == Some(libc::SIGTERM);
    assert!(by_signal, "{status}: {said}");
    std::fs::remove_file(pipe).unwrap();
}

/// No orderly end is possible: the program ends nevertheless, and the guest's process with it.
#[test]
fn a_guest_process_that_does_not_answer_does_not_hold_up_the_end() {
    let mut child = run(&["--engine", "process", "--timeout", "2s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut seen, mut byte) = (Vec::new(), [0]);
    let mut output = child.stdout.take().unwrap();
    while !seen.ends_with(b"> ") {
        if output.read(&mut byte).unwrap() == 0 {
            let (status, said) = end_of(child);
            if status.code() != Some(124) {
                assert!(missing(status, &said), "{status}: {said}");
            }
            return;
        }
        seen.push(byte[0]);
    }
    let processes = format!("/proc/{0}/task/{0}/children", child.id());
    let Ok(processes) = std::fs::read_to_string(processes) else {
        end_of(child);
        return skip("proc-children", "this kernel does not list a task's children");
    };
    let guest: Vec<u32> = processes.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    for &pid in &guest {
        signal(pid, libc::SIGSTOP);
    }
    child.stdin.as_mut().unwrap().write_all(b"help\n").unwrap();
    let (status, said) = end_of(child);
    assert_eq!(status.code(), Some(124), "{status}: {said}");
    assert!(said.contains("ended hard") && !guest.is_empty(), "{said}");
    for pid in guest {
        // It may be a zombie until init reaps it, because its parent has ended.
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        while !stat().is_empty() && !stat().contains(") Z ") {
            std::thread::yield_now();
        }
    }
}
