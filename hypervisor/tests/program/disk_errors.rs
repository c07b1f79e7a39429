//! Disks that fail while a guest uses them: the guest gets and prints an error, and guest and program go on.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};

use super::disk::Scratch;
use super::{PATIENCE, everywhere, paravane, run, skip};

const PROGRAM: &str = env!("CARGO_BIN_EXE_paravane");

/// The reference guest's shell, and its disk commands.
struct Session {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    what: String,
}

impl Session {
    fn begin(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let mut child = command.spawn().unwrap_or_else(|e| panic!("broken test: {what}: {e}"));
        let out = child.stdout.take().unwrap_or_else(|| panic!("broken test: no standard output"));
        Self { child, lines: BufReader::new(out).lines(), what }
    }

    fn on(options: &[&str], disk: &str) -> Self {
        Self::begin(paravane(PROGRAM, &[options, &["--disk", disk]].concat()))
    }

    /// The guest's answer to `disk COMMAND`.
    fn disk(&mut self, command: &str) -> String {
        let typed = self.child.stdin.as_mut().map(|stdin| writeln!(stdin, "disk {command}"));
        assert!(matches!(typed, Some(Ok(()))), "broken product: it does not listen any more: {}", self.what);
        let mut answers = self.lines.by_ref().map_while(Result::ok);
        let found = answers.find_map(|line| line.trim_end().strip_prefix("disk: ").map(str::to_owned));
        found.unwrap_or_else(|| panic!("broken product: no answer to disk {command}: {}", self.what))
    }

    #[track_caller]
    fn must(&mut self, command: &str, answer: &str) {
        let said = self.disk(command);
        assert_eq!(said, answer, "broken product: disk {command}, with {}", self.what);
    }

    /// Ends the guest, which must still work; the program must not have printed errors.
    fn end(mut self) {
        let typed = self.child.stdin.take().map(|mut stdin| writeln!(stdin, "halt"));
        assert!(matches!(typed, Some(Ok(()))), "broken product: it does not listen any more");
        self.lines.by_ref().map_while(Result::ok).for_each(drop);
        let output = self.child.wait_with_output().unwrap_or_else(|e| panic!("broken test: {e}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "broken product: {}: {said}", self.what);
    }
}

const DONE: &str = "done";
const ERROR: &str = "I/O error";

#[test]
fn an_image_that_is_cut_short() {
    for options in everywhere() {
        for more in ["", ",direct=on", ",queues=4"] {
            let disk = Scratch::new("cut");
            if more == ",direct=on" && !takes_direct(&disk) {
                skip("direct-io", "the file system of the temporary directory has none");
                continue;
            }
            let file = File::options().write(true).open(&disk.0).unwrap();
            let mut guest = Session::on(&options, &format!("{}{more}", disk.path()));
            guest.must("write 100", DONE);
            let len = file.metadata().unwrap().len();
            file.set_len(50 * 512).unwrap();
            guest.must("read 100", ERROR);
            guest.must("read 10", DONE);
            guest.must("flush", DONE);
            file.set_len(len).unwrap();
            guest.must("read 100", DONE);
            guest.end();
        }
    }
}

/// A qcow2 image of which only the header was copied. Unchecked, the guest's first write would overwrite the header and
/// end the program.
#[test]
fn a_qcow2_image_whose_copy_stopped_early() {
    let mut header = [0u8; 72];
    // Version 2, clusters of 64 KiB, 64 MiB, one entry at 0x30000, one cluster of refcounts at 0x10000.
    let fields = [
        (0, 0x5146_49fb_u32),
        (4, 2),
        (20, 16),
        (28, 64 << 20),
        (36, 1),
        (44, 0x30000),
        (52, 0x10000),
        (56, 1),
    ];
    for (at, value) in fields {
        header[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    for options in everywhere() {
        let disk = Scratch::new("copied.qcow2");
        std::fs::write(&disk.0, header).unwrap();
        let ran = run(&[&options[..], &["--disk", disk.path()]].concat(), b"disk write 0\nhalt\n");
        ran.must_end(1).must_say("lies outside the file, which has 72 bytes");
        ran.must_say(&format!("qemu-img check -r all {}", disk.path()));
        assert!(std::fs::read(&disk.0).unwrap() == header, "broken product: it was written to");
    }
}

/// The last sector of a file that ends in the middle of it.
#[test]
fn a_file_that_is_not_a_number_of_sectors() {
    for options in everywhere() {
        let disk = Scratch::new("odd");
        std::fs::write(&disk.0, vec![b'x'; 1000]).unwrap();
        let mut guest = Session::on(&options, disk.path());
        guest.must("read 2", ERROR);
        guest.must("read 1", DONE);
        guest.must("write 1", DONE);
        guest.end();
        assert_eq!(std::fs::metadata(&disk.0).unwrap().len(), 1024, "broken product: its length");
    }
}

fn takes_direct(disk: &Scratch) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_DIRECT).open(&disk.0).is_ok()
}

#[test]
fn a_disk_that_is_only_read() {
    for options in everywhere() {
        let disk = Scratch::new("readonly");
        let mut guest = Session::on(&options, &format!("{},readonly", disk.path()));
        for refused in ["write 3", "zero 0 8", "discard 0 8"] {
            guest.must(refused, ERROR);
            guest.must("read 3", DONE);
        }
        guest.end();
        assert!(
            std::fs::read(&disk.0).unwrap().iter().all(|byte| *byte == 0),
            "broken product: it was written"
        );
    }
}

#[test]
fn requests_past_the_end_and_for_no_sectors() {
    for options in everywhere() {
        let disk = Scratch::new("end");
        let mut guest = Session::on(&options, disk.path());
        for sector in ["4096", "36028797018963967", "36028797018963968", "18446744073709551615"] {
            for what in ["read", "write", "zero", "discard"] {
                guest.must(&format!("{what} {sector}"), ERROR);
            }
        }
        guest.must("zero 4095 2", ERROR);
        guest.must("zero 0 4294967295", ERROR);
        guest.must("write 4095", DONE);
        guest.end();
    }
}

/// The disk is longer than the limit on file sizes: for writes past the limit, the kernel returns EFBIG and sends a
/// signal that ends programs.
#[test]
fn a_file_that_may_not_grow() {
    const LIMIT: u64 = 128 << 20;
    for options in everywhere() {
        for format in ["raw", "qcow2"] {
            let disk = Scratch::new("limit");
            if format == "raw" {
                File::options().write(true).open(&disk.0).unwrap().set_len(LIMIT * 2).unwrap();
            } else if has_qemu_img() {
                // Every cluster is allocated in the file, which is longer than the limit.
                let size = (LIMIT * 2).to_string();
                let args =
                    ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", disk.path(), &size];
                assert!(Command::new("qemu-img").args(args).status().is_ok_and(|made| made.success()));
            } else {
                continue;
            }
            let path = format!("{},format={format}", disk.path());
            let mut guest = Session::begin(limited(&[&options[..], &["--disk", &path]].concat(), LIMIT));
            guest.must("write 500000", ERROR);
            guest.must("read 500000", DONE);
            guest.must("write 100", DONE);
            guest.must("flush", DONE);
            guest.end();
        }
    }
}

/// The program, with this limit on file sizes in bytes.
fn limited(args: &[&str], limit: u64) -> Command {
    let mut command = paravane(PROGRAM, args);
    // SAFETY: setrlimit(2) is async-signal-safe, and may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
            if libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) == 0 {
                return Ok(());
            }
            Err(std::io::Error::last_os_error())
        });
    }
    command
}

/// Runs the program in a mount namespace with a small file system, in which `prepare` makes the disk `$d`.
fn on_a_small_file_system(options: &[&str], size: &str, prepare: &str, after: &str) -> Command {
    let script = format!(
        "set -e; mount -t tmpfs -o size={size} none /mnt; d=/mnt/disk; {prepare}; \
         \"$0\" run --timeout {PATIENCE} \"$@\" --disk $d,format=$f; {after}"
    );
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, PROGRAM]).args(options);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn can_mount() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]);
    let can = command.output().is_ok_and(|output| output.status.success());
    if !can {
        skip("user-namespaces", "a file system of its own cannot be mounted here (unshare(1))");
    }
    can
}

/// Writes one of every `step` sectors until the file system is full. Returns how many were written.
fn fill_up(guest: &mut Session, step: u64, most: u64) -> u64 {
    let full = (0..most).find(|n| guest.disk(&format!("write {}", n * step)) == ERROR);
    full.unwrap_or_else(|| panic!("broken test: the disk is not full after {most} writes"))
}

#[test]
fn a_full_file_system() {
    if !can_mount() {
        return;
    }
    for options in everywhere() {
        let command = on_a_small_file_system(&options, "64k", "f=raw; truncate -s 1M $d", "true");
        let mut guest = Session::begin(command);
        let count = fill_up(&mut guest, 8, 256);
        assert!(count > 0, "broken test: there was no room for anything");
        guest.must("read 0", DONE);
        guest.must("write 0", DONE);
        guest.must("write 2000", ERROR);
        guest.must("discard 8 8", DONE);
        guest.must("write 2000", DONE);
        guest.end();
    }
}

/// Discarded clusters can be used again, and a full file system does not damage the image.
#[test]
fn a_full_file_system_under_a_qcow2_image() {
    if !can_mount() || !has_qemu_img() {
        return;
    }
    let make = "f=qcow2; qemu-img create -q -f qcow2 $d 16M";
    for options in everywhere() {
        let command = on_a_small_file_system(&options, "512k", make, "qemu-img check -q -f qcow2 $d >&2");
        let mut guest = Session::begin(command);
        let count = fill_up(&mut guest, 128, 128);
        assert!(count > 1, "broken test: there was no room for two clusters");
        guest.must("read 0", DONE);
        guest.must("write 0", DONE);
        guest.must("discard 128 128", DONE);
        guest.must("read 128", DONE);
        guest.must(&format!("write {}", 200 * 128), DONE);
        guest.must("flush", DONE);
        guest.end();
    }
}

pub fn has_qemu_img() -> bool {
    let there = Command::new("qemu-img").arg("--version").output().is_ok();
    if !there {
        skip("qemu-img", "not installed, nobody else looks at the image");
    }
    there
}

/// A loop device over a file, detached on drop.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// An I/O error from the kernel: a block device whose storage has disappeared.
#[test]
fn a_device_that_fails() {
    for options in everywhere() {
        let disk = Scratch::new("loop");
        let made = Command::new("losetup").args(["--show", "-f", disk.path()]).output();
        let Some(made) = made.ok().filter(|made| made.status.success()) else {
            return skip("loop-devices", "cannot be made here (needs root)");
        };
        let device = Loop(String::from_utf8_lossy(&made.stdout).trim().to_owned());
        for more in ["", ",direct=on"] {
            let file = File::options().write(true).open(&disk.0).unwrap();
            let len = file.metadata().unwrap().len();
            let mut guest = Session::on(&options, &format!("{}{more}", device.0));
            guest.must("write 5", DONE);
            guest.must("flush", DONE);
            file.set_len(64 * 512).unwrap();
            guest.must("read 2000", ERROR);
            guest.must("read 5", DONE);
            file.set_len(len).unwrap();
            guest.must("read 2000", DONE);
            guest.end();
        }
    }
}
