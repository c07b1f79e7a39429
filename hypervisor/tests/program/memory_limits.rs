//! Limits on memory, and guests that are larger than the host: an error that says what to do, never a death of the
//! program.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{Ran, paravane, ran, run};

const MIB: u64 = 1 << 20;

/// The program with at most so many bytes of address space, as by `ulimit -v`.
fn limited(bytes: u64, args: &[&str]) -> Ran {
    let mut command: Command = paravane(env!("CARGO_BIN_EXE_paravane"), args);
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: setrlimit reads its argument and makes a system call only.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_AS, &limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    ran(command, b"").unwrap_or_else(|error| panic!("broken test: the program cannot be run: {error}"))
}

/// 16 TiB once meant 64 GiB of lists, written before anybody asked whether they fit. The limit is for a host that has
/// so much: it stops there too.
#[test]
fn a_guest_far_larger_than_the_host_is_refused() {
    for engine in super::engines() {
        let ran = limited(8192 * MIB, &["--engine", engine, "--mem", "16T"]);
        ran.must_end(1).must_say("lower --mem");
    }
}

/// The process engine's tables once ended the program where memory was short.
#[test]
fn no_limit_on_memory_ends_the_program_without_a_word() {
    let least = (8..64).map(|n| n * 4 * MIB).find(|bytes| limited(*bytes, &["/nonexistent"]).code == Some(1));
    let least = least.expect("broken test: the program does not even complain");
    let mut started = false;
    for more in (0..200).step_by(5) {
        let ran = limited(least + more * MIB, &["--mem", "32M", "--cmdline", "test=paging"]);
        let code = ran.code;
        started |= code == Some(0);
        if code != Some(0) {
            ran.must_end(1).must_say("paravane: ");
        }
    }
    assert!(started, "200 MiB more than it takes to complain are enough for a guest of 32 MiB");
}

/// Each was read until the host had no memory left.
#[test]
fn inputs_without_an_end_are_named() {
    for args in [&["/dev/zero"][..], &["--initrd", "/dev/zero"]] {
        run(args, b"").must_end(1).must_say("it is a character device; copy what you want of it to a file");
    }
    let mut audit = Command::new(env!("CARGO_BIN_EXE_paravane"));
    audit.args(["audit", "/dev/zero"]).stdin(std::process::Stdio::piped());
    audit.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let ran = ran(audit, b"").unwrap_or_else(|error| panic!("broken test: {error}"));
    ran.must_end(2).must_say("it is a character device");
}
