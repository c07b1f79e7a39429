//! Limits of the user's shell (ulimit): an error names the limit that caused it, and no file is lost.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use skip::skip;

type Resource = libc::__rlimit_resource_t;

/// A directory that is deleted on drop.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("paravane-limits-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `paravane run` with this console input.
fn run(args: &[&str], typed: &str) -> Command {
    let path = std::env::temp_dir().join(format!(
        "paravane-limits-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let mut input = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    input.write_all(typed.as_bytes()).unwrap();
    input.rewind().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command.args(["run", "--timeout", "60s"]).args(args).stdin(input);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Limits a resource of the program. SIGXFSZ gets its default action, whatever it is in this process.
fn limit(command: &mut Command, resource: Resource, most: u64) -> &mut Command {
    let set = move || {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: the rlimit is valid; both calls are async-signal-safe.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
            if libc::setrlimit(resource, &raw const limit) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        }
    };
    // SAFETY: see `set`.
    unsafe { command.pre_exec(set) }
}

fn said(output: &Output) -> String {
    format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))
}

/// Whether this machine has no engine.
fn missing(output: &Output) -> bool {
    let missing = output.status.code() == Some(1) && said(output).contains("no engine works here");
    if missing {
        skip("engine", said(output));
    }
    missing
}

/// This limit also applies to the memory of a guest on the process engine, which is a file.
const LIMIT: u64 = 1 << 30;
const NAMED: &str =
    "File too large (os error 27); the limit of file sizes is 1073741824: raise it (ulimit -f)";

/// A sparse file that can grow by `left` bytes before it reaches the limit.
fn nearly_full(path: &Path, left: u64) -> File {
    let mut file = File::create(path).unwrap();
    file.set_len(LIMIT - left).unwrap();
    file.seek(io::SeekFrom::End(0)).unwrap();
    file
}

#[test]
fn standard_output_over_the_limit_of_file_sizes_is_an_error() {
    let place = Place::new("stdout");
    let out = place.file("out");
    let mut command = run(&[], &("help\n".repeat(20) + "halt\n"));
    let output = limit(command.stdout(nearly_full(&out, 1000)), libc::RLIMIT_FSIZE, LIMIT).output().unwrap();
    if missing(&output) {
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains(&format!("console output was lost: {NAMED}")), "{}", said(&output));
    assert_eq!(std::fs::metadata(out).unwrap().len(), LIMIT);
}

#[test]
fn statistics_over_the_limit_of_file_sizes_are_an_error() {
    let place = Place::new("statistics");
    let file = place.file("statistics.json");
    let mut command = run(&["--engine", "kvm", "--stats-json", file.to_str().unwrap()], "halt\n");
    let output = limit(&mut command, libc::RLIMIT_FSIZE, 2000).output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    if said.contains("KVM") {
        return skip("kvm", said);
    }
    assert!(said.contains("the limit of file sizes is 2000: raise it (ulimit -f)"), "{said}");
    assert!(!file.exists(), "half a file was left");
}

#[test]
fn a_console_file_over_the_limit_of_file_sizes_is_reported_and_the_guest_goes_on() {
    let place = Place::new("console");
    drop(nearly_full(&place.file("console"), 10));
    let console = format!("file={},append", place.file("console").display());
    let args = ["--console", &console, "--cmdline", "console=virtio"];
    let output = limit(&mut run(&args, "help\nhalt\n"), libc::RLIMIT_FSIZE, LIMIT).output().unwrap();
    if missing(&output) {
        return;
    }
    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("the console's output is lost from here on") && said.contains(NAMED), "{said}");
}

#[test]
fn commands_that_run_no_guest_name_the_limit_of_file_sizes() {
    let place = Place::new("audit");
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command.args(["audit", "--json", "--all"]).stdout(File::create(place.file("out")).unwrap());
    let output = limit(command.stderr(Stdio::piped()), libc::RLIMIT_FSIZE, 10).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("File too large"), "{}", said(&output));
}

#[test]
fn statistics_of_a_run_that_never_starts_leave_the_file_as_it_was() {
    let place = Place::new("old");
    let (old, new) = (place.file("old.json"), place.file("new.json"));
    std::fs::write(&old, "of yesterday").unwrap();
    for file in [&old, &new] {
        // The run fails after it has opened everything.
        let args = ["--engine", "process", "--transport", "pio", "--stats-json", file.to_str().unwrap()];
        let output = run(&args, "").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    }
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "of yesterday");
    assert!(!new.exists(), "a file was left that says nothing");
}

#[test]
fn statistics_replace_an_old_file_through_its_links() {
    let place = Place::new("links");
    let (file, link) = (place.file("statistics.json"), place.file("link"));
    std::fs::write(&file, "x".repeat(100_000)).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let output = run(&["--stats-json", link.to_str().unwrap()], "halt\n").output().unwrap();
    if missing(&output) {
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(link.is_symlink());
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(json["end"], "the guest powered off");
}

#[test]
fn statistics_on_standard_output_follow_what_was_printed() {
    let place = Place::new("both");
    let out = place.file("out");
    let mut command = run(&["--stats-json", "/dev/stdout"], "halt\n");
    let output = command.stdout(File::create(&out).unwrap()).output().unwrap();
    if missing(&output) {
        return;
    }
    let (mut text, mut file) = (String::new(), File::open(&out).unwrap());
    file.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("paravane guest"), "{text}");
    let json = text.find("{\n").map(|at| &text[at..]).unwrap_or_default();
    assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{text}");
}

/// Tries each limit, from one with which nothing works to one with which everything does.
#[test]
fn a_run_that_has_too_few_descriptors_names_the_limit() {
    // With fewer, even the dynamic linker fails.
    const LEAST: u64 = 8;
    for engine in ["process", "kvm"] {
        if engine == "kvm" && !Path::new("/dev/kvm").exists() {
            skip("kvm", "there is no /dev/kvm");
            continue;
        }
        for most in LEAST..32 {
            let mut command = run(&["--engine", engine, "--timeout", "2s"], "halt\n");
            let output = limit(&mut command, libc::RLIMIT_NOFILE, most).output().unwrap();
            let said = said(&output);
            // A guest without input, which is also reported, idles until the time limit.
            let runs = matches!(output.status.code(), Some(0 | 124));
            assert!(
                runs && !said.contains("os error") || said.contains("(ulimit -n)"),
                "{engine} {most}: {said}"
            );
        }
    }
}

#[test]
fn a_run_that_may_have_no_pending_signals_names_the_limit() {
    for (engine, most) in [("process", 0), ("kvm", 0), ("process", 1), ("process", 2), ("kvm", 1)] {
        let mut command = run(&["--engine", engine], "halt\n");
        let output = limit(&mut command, libc::RLIMIT_SIGPENDING, most).output().unwrap();
        let said = said(&output);
        if output.status.code() == Some(0) || said.contains("/dev/kvm") {
            // Another process of this user has returned its share of the limit, or the engine is missing.
            continue;
        }
        assert!(output.status.code() == Some(1) && said.contains("(ulimit -i)"), "{engine}: {said}");
    }
}
