//! Snapshots, as users make and use them: the signal, the key's message, the files, and what is refused.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use skip::skip;

fn paravane(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn refused(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = paravane(&[&["run"], args].concat()).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

/// A file of this test's own, which goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("paravane-snapshot-{}-{name}.snap", std::process::id())))
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Waits for text on the guest's console; false if it ends without.
fn hear(child: &mut Child, what: &str) -> bool {
    let (stdout, mut seen) = (child.stdout.as_mut().unwrap(), Vec::new());
    let mut byte = [0];
    while !seen.ends_with(what.as_bytes()) {
        if stdout.read(&mut byte).unwrap() == 0 {
            return false;
        }
        seen.push(byte[0]);
    }
    true
}

fn type_to(child: &mut Child, line: &str) {
    child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
}

/// Saves the reference guest at its prompt; false if this machine cannot run guests.
fn save(to: &Scratch) -> bool {
    let mut guest = paravane(&["run", "--timeout", "60s", "--snapshot-to", to.name()]).spawn().unwrap();
    if !hear(&mut guest, "> ") {
        let output = guest.wait_with_output().unwrap();
        skip("engine", String::from_utf8_lossy(&output.stderr));
        return false;
    }
    let pid = libc::pid_t::try_from(guest.id()).unwrap();
    // SAFETY: kill takes no pointers; the child `pid` has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGUSR2) }, 0);
    let mut said = String::new();
    BufReader::new(guest.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains(&format!("saved to {}", to.name())), "{said}");
    // It goes on.
    type_to(&mut guest, "halt\r");
    assert_eq!(guest.wait().unwrap().code(), Some(0));
    true
}

#[test]
fn a_signal_saves_a_guest_that_goes_on_from_the_file() {
    let file = Scratch::new("signal");
    if !save(&file) {
        return;
    }
    for _ in 0..2 {
        let mut guest = paravane(&["run", "--timeout", "60s", "--restore", file.name()]).spawn().unwrap();
        // The shell is at its prompt, which it has printed before.
        type_to(&mut guest, "mem\r");
        assert!(hear(&mut guest, "65536 KiB"));
        type_to(&mut guest, "halt\r");
        assert_eq!(guest.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn what_is_damaged_or_does_not_fit_is_refused_by_name() {
    let file = Scratch::new("damaged");
    if !save(&file) {
        return;
    }
    let good = std::fs::read(&file.0).unwrap();
    for (cut, at, what) in [
        (good.len(), 0, "is not a snapshot"),
        (good.len(), 8, "version 65 of the format"),
        (good.len(), 20, "its header's checksum is wrong"),
        (good.len() / 2, 1, "it ends in the middle"),
        (good.len(), good.len() - 1, "the kernel's file"),
    ] {
        let mut bytes = good.clone();
        bytes[at] ^= if at == 1 { 0 } else { 0x40 };
        std::fs::write(&file.0, &bytes[..cut]).unwrap();
        let (status, said) = refused(&["--restore", file.name(), "--timeout", "1s"]);
        // A damaged kernel's file costs its symbols alone.
        if what == "the kernel's file" {
            assert_eq!(status, Some(124), "{said}");
        } else {
            assert!(status == Some(1) && said.contains(what), "{what}: {status:?} {said}");
        }
    }
    std::fs::write(&file.0, &good).unwrap();
    let (status, said) = refused(&["--restore", file.name(), "--rng"]);
    assert!(status == Some(1) && said.contains("has no virtio devices"), "{said}");
    for beside in [["--mem", "64M"], ["--cmdline", "x"], ["--vcpus", "2"]] {
        let (status, said) = refused(&[&["--restore", file.name()][..], &beside].concat());
        assert!(status == Some(2) && said.contains("cannot be used with"), "{said}");
    }
    let (status, said) = refused(&["--restore", "/no/such/file"]);
    assert!(status == Some(1) && said.contains("cannot read the snapshot"), "{said}");
}

#[test]
fn what_can_never_be_saved_is_refused_at_once() {
    let file = Scratch::new("never");
    for (args, what) in [
        (&["--rng"][..], "virtio devices cannot be saved"),
        (&["--bare"], "cannot save a guest (--snapshot-to): pv can"),
        (&["--technique", "trap"], "cannot save a guest (--snapshot-to): pv can"),
    ] {
        let (status, said) = refused(&[&["--snapshot-to", file.name()][..], args].concat());
        assert!(status == Some(1) && said.contains(what), "{said}");
    }
    // gdb's breakpoints are instructions in the guest's memory.
    let (status, said) = refused(&["--snapshot-to", file.name(), "--gdb"]);
    assert!(status == Some(2) && said.contains("cannot be used with"), "{said}");
    assert!(!file.0.exists());
}
