//! Limits on memory, and guests that are larger than the host: an error with a remedy, and never a crash.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{Ran, paravane, ran, run};

const MIB: u64 = 1 << 20;

/// Runs the program with this limit on its address space, as by `ulimit -v`.
fn limited(bytes: u64, args: &[&str]) -> Ran {
    let mut command: Command = paravane(env!("CARGO_BIN_EXE_paravane"), args);
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: setrlimit only reads its argument and makes a system call.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_AS, &limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    ran(command, b"").unwrap_or_else(|error| panic!("broken test: the program cannot be run: {error}"))
}

/// 16 TiB once caused 64 GiB of tables to be written without a check that they fit. The limit on address space makes
/// the test safe, and meaningful, on a host with that much memory.
#[test]
fn a_guest_far_larger_than_the_host_is_refused() {
    for engine in super::engines() {
        let ran = limited(8192 * MIB, &["--engine", engine, "--mem", "16T"]);
        ran.must_end(1).must_say("lower --mem");
    }
}

/// Allocating the process engine's tables once aborted the program when memory was short.
#[test]
fn every_memory_limit_is_enough_or_reported() {
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

/// Each of these was once read until the host ran out of memory.
#[test]
fn endless_inputs_are_refused_by_name() {
    for args in [&["/dev/zero"][..], &["--initrd", "/dev/zero"]] {
        run(args, b"").must_end(1).must_say("it is a character device; copy what you want of it to a file");
    }
    let mut audit = Command::new(env!("CARGO_BIN_EXE_paravane"));
    audit.args(["audit", "/dev/zero"]).stdin(std::process::Stdio::piped());
    audit.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let ran = ran(audit, b"").unwrap_or_else(|error| panic!("broken test: {error}"));
    ran.must_end(2).must_say("it is a character device");
}
