//! On the host's network through passt, which needs no privileges.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::guest::{Guest, everywhere};
use super::http::{drain_source, fetch, fill_sink};
use super::skip;

const MIB: u64 = 1 << 20;

/// Free ports of this host.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [_; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Whether passt works on this machine; otherwise reports the reason.
fn works() -> bool {
    let Some(options) = everywhere().first() else { return false };
    let mut guest = Guest::start(options, &["--net", "user", "--cmdline", "serve"]);
    let works = guest.line_with("net: address").is_some();
    if works {
        guest.end("\x04");
    } else {
        let (_, error) = guest.finish();
        skip("passt", error.trim_end());
    }
    works
}

/// The child of a process that is called passt.
fn passt_of(parent: u32) -> Option<i32> {
    let stat_of = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("stat")).ok();
    let stats = std::fs::read_dir("/proc").unwrap().filter_map(|entry| stat_of(entry.ok()?));
    // proc(5): process ID, name in parentheses, state, parent.
    let mut found = stats.filter_map(|stat| {
        let (number, rest) = stat.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let its_parent = rest.split(' ').nth(1)?;
        (name.starts_with("passt") && its_parent == parent.to_string()).then(|| number.parse().ok())?
    });
    found.next()
}

/// A descriptor that becomes readable when a process ends.
fn end_of(process: i32) -> std::os::fd::OwnedFd {
    // SAFETY: only numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    assert!(fd >= 0, "broken test: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, so nothing else owns it.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd as i32) }
}

fn wait_for(end: &std::os::fd::OwnedFd) {
    use std::os::fd::AsRawFd;
    let mut fd = libc::pollfd { fd: end.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    let count = unsafe { libc::poll(&mut fd, 1, 60_000) };
    assert_eq!(count, 1, "broken product: passt is left behind");
}

#[test]
fn pages_and_streams_pass() {
    if !works() {
        return;
    }
    for options in everywhere() {
        let [page, sink, source] = free_ports();
        let net = format!("user,tcp={page}:80,tcp={sink}:9,tcp={source}:19");
        let mut guest = Guest::start(options, &["--cmdline", "serve", "--net", &net]);
        guest.must_say("net: address");
        for number in 1..=6 {
            let answer = fetch(local(page), "/");
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{options:?}: {answer}");
            assert!(answer.contains(&format!("request: {number}")), "{options:?}: {answer}");
        }
        fill_sink(local(sink), local(page), MIB + 1);
        drain_source(local(source), MIB + 1);
        guest.type_in("\x04");
        guest.must_say("net: done");
        guest.end("");
    }
}

/// passt reports the error early, whether or not the guest asks for an address.
#[test]
fn a_port_that_passt_cannot_have_ends_the_run() {
    if !works() {
        return;
    }
    // This number is out of range.
    let net = "user,tcp=99999:80";
    for options in everywhere() {
        for cmdline in ["serve", ""] {
            let mut guest = Guest::start(options, &["--net", net, "--cmdline", cmdline]);
            let stdin = guest.keep_input();
            let (status, error) = guest.finish();
            drop(stdin);
            assert_eq!(status.code(), Some(1), "{options:?}: {error}");
            let lines: Vec<_> = error.lines().collect();
            assert!(
                matches!(lines[..], [line] if line.starts_with("paravane: the guest has no network: passt gave up: ")),
                "{options:?}: {error}"
            );
        }
    }
}

#[test]
fn a_passt_that_is_killed_is_a_link_that_is_down() {
    if !works() {
        return;
    }
    for options in everywhere() {
        let mut guest = Guest::start(options, &["--net", "user", "--cmdline", "serve"]);
        guest.must_say("net: address");
        let passt = passt_of(guest.child.id()).unwrap();
        // SAFETY: it is a grandchild, which still runs and has not been reaped.
        assert_eq!(unsafe { libc::kill(passt, libc::SIGKILL) }, 0);
        guest.must_say("net: the link is down");
        guest.type_in("\x04");
        guest.must_say("net: done");
        let (status, error) = guest.finish();
        assert!(status.success(), "{options:?}: {error}");
        assert!(error.starts_with("paravane: passt has ended, the guest's network is down: "), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn passt_ends_with_the_program_however_that_ends() {
    if !works() {
        return;
    }
    for options in everywhere() {
        for signal in [libc::SIGKILL, libc::SIGTERM] {
            let mut guest = Guest::start(options, &["--net", "user", "--cmdline", "serve"]);
            guest.must_say("net: address");
            let end = end_of(passt_of(guest.child.id()).unwrap());
            // SAFETY: it is a child that has not been reaped.
            assert_eq!(unsafe { libc::kill(guest.child.id() as i32, signal) }, 0);
            let (status, error) = guest.finish();
            assert!(
                status.signal() == Some(signal) || status.code() == Some(128 + signal),
                "{status} {error}"
            );
            wait_for(&end);
        }
    }
}

#[test]
fn without_passt_it_says_what_to_install() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    let output = command.args(["run", "--net", "user"]).env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("apt install passt"), "{error}");
}
