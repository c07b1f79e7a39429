//! The program on a terminal: raw while the guest has it, as it was afterwards, whatever happened.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// A guest on a terminal of its own.
struct OnTerminal {
    /// The user's side.
    user: File,
    /// The program's side, kept open for its modes to be read.
    terminal: OwnedFd,
    child: Child,
    before: Modes,
}

type Modes = [libc::tcflag_t; 4];

/// Starts the reference guest; nothing where no guest can run.
fn guest() -> Option<OnTerminal> {
    let (user, terminal) = open_pty();
    let before = modes(&terminal);
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command.args(["run", "--timeout", "60s"]);
    let side = || terminal.try_clone().unwrap();
    command.stdin(side()).stdout(side()).stderr(side());
    // SAFETY: setsid and ioctl are async-signal-safe, as is making an error of errno; standard input is open.
    unsafe {
        command.pre_exec(|| {
            match libc::setsid() != -1 && libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) == 0 {
                true => Ok(()),
                false => Err(io::Error::last_os_error()),
            }
        });
    }
    let child = command.spawn().unwrap();
    let mut guest = OnTerminal { user, terminal, child, before };
    let seen = guest.read_until(&["> ", "paravane: "]);
    if !seen.ends_with("> ") {
        let _ = writeln!(std::io::stderr(), "SKIP: no guest runs here: {}", guest.read_until(&["\n"]));
        assert_eq!(guest.child.wait().unwrap().code(), Some(1), "{seen}");
        return None;
    }
    Some(guest)
}

impl OnTerminal {
    fn read_until(&mut self, ends: &[&str]) -> String {
        let (mut seen, mut byte) = (String::new(), [0]);
        while !ends.iter().any(|end| seen.ends_with(end)) {
            self.user.read_exact(&mut byte).unwrap();
            seen.push(char::from(byte[0]));
        }
        seen
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.user.write_all(keys).unwrap();
    }

    fn signal(&self, number: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: kill takes no pointers; `pid` is a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, number) }, 0);
    }

    fn is_raw(&self) -> bool {
        modes(&self.terminal)[3] & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }

    fn ends_with(mut self, code: i32) {
        assert_eq!(self.child.wait().unwrap().code(), Some(code));
        assert_eq!(modes(&self.terminal), self.before, "the terminal was not restored");
    }
}

fn open_pty() -> (File, OwnedFd) {
    let (mut user, mut terminal) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: two ints to fill; the name, modes and size are optional.
    let result = unsafe { libc::openpty(&mut user, &mut terminal, null, null.cast(), null.cast()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    // SAFETY: both were just opened for us.
    unsafe { (File::from_raw_fd(user), OwnedFd::from_raw_fd(terminal)) }
}

fn modes(terminal: &OwnedFd) -> Modes {
    // SAFETY: an all-zero termios is valid, and tcgetattr fills it.
    let (mut t, fd) = (unsafe { std::mem::zeroed::<libc::termios>() }, terminal.as_raw_fd());
    // SAFETY: `t` is room for a termios.
    assert_eq!(unsafe { libc::tcgetattr(fd, &mut t) }, 0);
    [t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag]
}

#[test]
fn keys_reach_the_guest_and_its_end_restores_the_terminal() {
    let Some(mut guest) = guest() else { return };
    assert!(guest.is_raw());
    guest.type_keys(b"mem\r");
    guest.read_until(&["> "]);
    guest.type_keys(b"halt\r");
    guest.ends_with(0);
}

#[test]
fn the_escape_key_helps_and_leaves() {
    let Some(mut guest) = guest() else { return };
    guest.type_keys(b"\x01h");
    guest.read_until(&["Ctrl-A x       leave"]);
    guest.type_keys(b"\x01s");
    guest.read_until(&["Exits so far"]);
    guest.read_until(&["Total samples"]);
    guest.type_keys(b"\x01x");
    guest.ends_with(0);
}

#[test]
fn a_signal_restores_the_terminal() {
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        let Some(guest) = guest() else { return };
        guest.signal(number);
        guest.ends_with(128 + number);
    }
}

#[test]
fn a_guest_that_panics_restores_the_terminal() {
    let Some(mut guest) = guest() else { return };
    guest.type_keys(b"panic\r");
    guest.ends_with(3);
}

#[test]
fn stopping_gives_the_terminal_back_for_the_while() {
    let Some(mut guest) = guest() else { return };
    guest.signal(libc::SIGTSTP);
    let pid = libc::id_t::from(guest.child.id());
    // SAFETY: an all-zero siginfo is valid room for the answer; the child exists. WNOWAIT leaves it to `wait`.
    let stopped = unsafe {
        let mut info = std::mem::zeroed();
        libc::waitid(libc::P_PID, pid, &mut info, libc::WSTOPPED | libc::WNOWAIT)
    };
    assert_eq!(stopped, 0);
    assert_eq!(modes(&guest.terminal), guest.before);
    guest.signal(libc::SIGCONT);
    guest.type_keys(b"\r");
    // The guest echoes and prompts; had the terminal not been made raw again, it would have echoed as well.
    guest.read_until(&["> "]);
    assert!(guest.is_raw());
    guest.type_keys(b"halt\r");
    guest.ends_with(0);
}
