//! Machines where /dev/kvm is missing or may not be opened, as in containers and CI jobs: the messages, and the choice
//! of the process engine.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{Ran, paravane, ran, skip};

const NOBODY: u32 = 65534;
const KVM: &str = "/dev/kvm";

/// The program's open file, by which other users can run it, wherever it is.
struct Program(File);

impl Program {
    /// `None` if other users may not execute it, as after a build with umask 077.
    fn open() -> Option<Self> {
        let opened = File::open(env!("CARGO_BIN_EXE_paravane")).and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Ok((metadata, _)) if is_root() && metadata.permissions().mode() & 0o005 != 0o005 => {
                skip("no-kvm", "nobody else may run what was built here");
                None
            }
            Ok((_, file)) => Some(Self(file)),
            Err(error) => panic!("broken test: the program cannot be read: {error}"),
        }
    }

    /// A command, which must be spawned while `self` lives.
    fn command(&self, args: &[&str]) -> Command {
        paravane(&format!("/proc/self/fd/{}", self.0.as_raw_fd()), args)
    }
}

fn is_root() -> bool {
    // SAFETY: it takes no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Runs the program as a user who may not open /dev/kvm; `None` if the test cannot arrange that.
fn without_permission(args: &[&str]) -> Option<Ran> {
    let metadata = fs::metadata(KVM).map_err(|error| skip("kvm", format_args!("{KVM}: {error}"))).ok()?;
    if !is_root() {
        let refused = OpenOptions::new().read(true).write(true).open(KVM);
        if !refused.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            skip(
                "no-kvm",
                format_args!("whoever runs this may open {KVM}, and may not become somebody else"),
            );
            return None;
        }
    } else if metadata.permissions().mode() & 0o006 == 0o006 {
        skip("no-kvm", format_args!("anybody may open {KVM} here"));
        return None;
    }
    let program = Program::open()?;
    let mut command = program.command(args);
    if is_root() {
        // This drops supplementary groups, too.
        command.uid(NOBODY).gid(NOBODY);
    }
    Some(finished(command))
}

/// Runs the program with an empty /dev; `None` if the test cannot arrange that.
fn without_device(args: &[&str]) -> Option<Ran> {
    let mut command = paravane(env!("CARGO_BIN_EXE_paravane"), args);
    let namespaces = if is_root() { libc::CLONE_NEWNS } else { libc::CLONE_NEWNS | libc::CLONE_NEWUSER };
    // SAFETY: `hide_devices` only makes system calls.
    unsafe { command.pre_exec(move || hide_devices(namespaces)) };
    match ran(command, b"") {
        Ok(ran) => Some(ran),
        Err(error) => {
            skip("no-kvm", format_args!("no mount namespace without {KVM}: {error}"));
            None
        }
    }
}

/// Mounts an empty file system over /dev, in a mount namespace of this process.
fn hide_devices(namespaces: libc::c_int) -> io::Result<()> {
    let done = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: no pointers.
    done(unsafe { libc::unshare(namespaces) })?;
    let (root, dev, tmpfs) = (c"/".as_ptr(), c"/dev".as_ptr(), c"tmpfs".as_ptr());
    let (none, no_data) = (std::ptr::null(), std::ptr::null());
    // SAFETY: strings and null pointers, as mount(2) takes them.
    done(unsafe { libc::mount(none, root, none, libc::MS_REC | libc::MS_PRIVATE, no_data) })?;
    // SAFETY: as above.
    done(unsafe { libc::mount(tmpfs, dev, tmpfs, 0, no_data) })
}

fn finished(command: Command) -> Ran {
    match ran(command, b"") {
        Ok(ran) => ran,
        Err(error) => panic!("broken test: the program cannot be run: {error}"),
    }
}

/// Runs the program without permission for /dev/kvm, and without /dev/kvm.
fn everyhow(args: &[&str]) -> impl Iterator<Item = Ran> {
    [without_permission(args), without_device(args)].into_iter().flatten()
}

#[test]
fn missing_permission_is_reported_with_a_remedy() {
    if let Some(ran) = without_permission(&["--engine", "kvm"]) {
        ran.must_end(1).must_say("cannot open /dev/kvm: permission denied; add yourself to the kvm group");
    }
}

#[test]
fn a_missing_device_is_reported_with_a_remedy() {
    if let Some(ran) = without_device(&["--engine", "kvm"]) {
        ran.must_end(1).must_say("there is no /dev/kvm");
    }
}

#[test]
fn auto_takes_the_process_engine() {
    if !super::engines().contains(&"process") {
        return;
    }
    for image in [&[][..], &["--bare"]] {
        for engine in ["auto", "process"] {
            let args = [&["--engine", engine, "--cmdline", "test=paging"], image].concat();
            for ran in everyhow(&args) {
                ran.must_end(0).must_print("test: name=paging ok=true");
            }
        }
    }
}

/// Runs the program with these arguments as somebody who may have no KVM and make no process.
fn without_any_engine(args: &[&str]) -> Option<Ran> {
    if !is_root() {
        skip("no-kvm", "only root may become somebody without processes");
        return None;
    }
    let program = Program::open()?;
    let mut command = program.command(args);
    command.uid(NOBODY).gid(NOBODY);
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: setrlimit reads its argument and makes a system call only.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NPROC, &limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    if fs::metadata(KVM).is_ok_and(|kvm| kvm.permissions().mode() & 0o006 == 0o006) {
        skip("no-kvm", format_args!("anybody may open {KVM} here"));
        return None;
    }
    Some(finished(command))
}

#[test]
fn without_any_engine_both_reasons_are_reported() {
    if let Some(ran) = without_any_engine(&["--engine", "auto"]) {
        ran.must_end(1).must_say("no engine works here. KVM: ").must_say("Processes: ");
    }
}

/// A bare kernel is then interpreted, unless something else was asked for.
#[test]
fn without_any_engine_a_bare_kernel_is_interpreted() {
    let common = ["--stats", "--cmdline", "test=paging"];
    if let Some(ran) = without_any_engine(&[&["--bare"][..], &common].concat()) {
        ran.must_end(0).must_print("test: name=paging ok=true");
        let tells = ran.err.lines().any(|line| {
            line.contains("KVM: ") && line.contains("Processes: ") && line.contains("interpret needs none")
        });
        ran.must(tells, format_args!("should have said why"));
    }
    if let Some(ran) = without_any_engine(&[&["--technique", "trap"][..], &common].concat()) {
        ran.must_end(1).must_say("no engine works here");
    }
}
