//! The program on a terminal: raw while the guest runs, and restored afterwards, however the program ends.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use skip::skip;

/// A guest on its own pseudo-terminal.
struct OnTerminal {
    /// The user's side of the pseudo-terminal.
    user: File,
    /// The program's side, kept open so that the test can read its modes.
    terminal: OwnedFd,
    child: Child,
    before: Modes,
}

type Modes = [libc::tcflag_t; 4];

/// Starts the reference guest; `None` if this machine cannot run guests.
fn guest() -> Option<OnTerminal> {
    guest_with(&[])
}

fn guest_with(options: &[&str]) -> Option<OnTerminal> {
    let mut guest = start(options, None, |_| {});
    let seen = guest.read_until(&["> ", "paravane: "]);
    if !seen.ends_with("> ") {
        skip("engine", guest.read_until(&["\n"]));
        assert_eq!(guest.child.wait().unwrap().code(), Some(1), "{seen}");
        return None;
    }
    Some(guest)
}

/// Starts the program on a terminal after `prepare`, with a signal ignored if one is given.
fn start(options: &[&str], ignored: Option<libc::c_int>, prepare: fn(&OwnedFd)) -> OnTerminal {
    let (user, terminal) = open_pty();
    resize(&user, 80, 24);
    let before = modes(&terminal);
    prepare(&terminal);
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command.args(["run", "--timeout", "60s"]).args(options);
    let side = || terminal.try_clone().unwrap();
    command.stdin(side()).stdout(side()).stderr(side());
    // SAFETY: signal, setsid, ioctl and reading errno are async-signal-safe; standard input is open.
    unsafe {
        command.pre_exec(move || {
            if let Some(number) = ignored {
                libc::signal(number, libc::SIG_IGN);
            }
            match libc::setsid() != -1 && libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) == 0 {
                true => Ok(()),
                false => Err(io::Error::last_os_error()),
            }
        });
    }
    let child = command.spawn().unwrap();
    OnTerminal { user, terminal, child, before }
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
        // SAFETY: kill takes no pointers; the child `pid` has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, number) }, 0);
    }

    fn is_raw(&self) -> bool {
        modes(&self.terminal)[3] & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }

    /// Waits until it is stopped.
    fn wait_for_stop(&self) {
        let pid = libc::id_t::from(self.child.id());
        // SAFETY: an all-zero siginfo is valid, and the call fills it; the child exists. WNOWAIT leaves it to `wait`.
        let stopped = unsafe {
            let mut info = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid, &mut info, libc::WSTOPPED | libc::WNOWAIT)
        };
        assert_eq!(stopped, 0);
    }

    fn ends_with(self, code: i32) {
        self.ends(|status| assert_eq!(status.code(), Some(code)));
    }

    fn ends(mut self, check: impl FnOnce(ExitStatus)) {
        check(self.child.wait().unwrap());
        assert_eq!(modes(&self.terminal), self.before, "the terminal was not restored");
    }
}

fn open_pty() -> (File, OwnedFd) {
    let (mut user, mut terminal) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: two ints to fill; the name, modes and size are optional.
    let result = unsafe { libc::openpty(&mut user, &mut terminal, null, null.cast(), null.cast()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    // SAFETY: both descriptors are new, so nothing else owns them.
    unsafe { (File::from_raw_fd(user), OwnedFd::from_raw_fd(terminal)) }
}

fn resize(user: &File, columns: u16, rows: u16) {
    let size = libc::winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: an open descriptor, and the structure that this request takes.
    assert_eq!(unsafe { libc::ioctl(user.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
}

/// Sets the modes that a shell sets after one of its jobs has stopped.
fn make_cooked(terminal: &OwnedFd) {
    // SAFETY: an all-zero termios is valid, and tcgetattr fills it.
    unsafe {
        let mut modes = std::mem::zeroed::<libc::termios>();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &raw mut modes), 0);
        modes.c_lflag |= libc::ICANON | libc::ECHO | libc::ISIG;
        assert_eq!(libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const modes), 0);
    }
}

fn modes(terminal: &OwnedFd) -> Modes {
    // SAFETY: an all-zero termios is valid, and tcgetattr fills it.
    let (mut t, fd) = (unsafe { std::mem::zeroed::<libc::termios>() }, terminal.as_raw_fd());
    // SAFETY: `t` is a valid termios.
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
    guest.read_until(&["vCPU 0 waits for an event (SCHEDOP_block):"]);
    guest.read_until(&["guest_kernel::shell::session::run"]);
    guest.type_keys(b"\x01x");
    guest.ends_with(0);
}

#[test]
fn the_guest_can_be_paused_and_a_supervisor_learns_of_it() {
    let fifo = std::env::temp_dir().join(format!("paravane-events-{}", std::process::id()));
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: a path that ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    // Open for both, so that neither side waits for the other.
    let events = File::options().read(true).write(true).open(&fifo).unwrap();
    let mut events = io::BufReader::new(events);
    let guest = guest_with(&["--events", fifo.to_str().unwrap()]);
    std::fs::remove_file(&fifo).unwrap();
    let Some(mut guest) = guest else { return };
    let mut until = |wanted: &str| {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            io::BufRead::read_line(&mut events, &mut line).unwrap();
        }
    };
    until("\"event\":\"first-output\"");
    guest.type_keys(b"\x01p");
    until("\"event\":\"paused\"");
    // It stands still: this is answered only later.
    guest.type_keys(b"halt\r\x01p");
    until("\"event\":\"resumed\"");
    until("\"event\":\"ended\",\"status\":0");
    assert!(guest.child.wait().unwrap().success());
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
fn a_stopped_program_returns_the_terminal_until_it_continues() {
    let Some(mut guest) = guest() else { return };
    guest.signal(libc::SIGTSTP);
    guest.wait_for_stop();
    assert_eq!(modes(&guest.terminal), guest.before);
    guest.signal(libc::SIGCONT);
    guest.type_keys(b"\r");
    // Only the guest echoes; if the terminal were not raw again, it would echo as well.
    guest.read_until(&["> "]);
    assert!(guest.is_raw());
    guest.type_keys(b"halt\r");
    guest.ends_with(0);
}

/// SIGSTOP leaves no time to restore the terminal: the shell sets its own modes, and the program must set raw ones
/// again.
#[test]
fn the_terminal_is_raw_again_after_sigstop() {
    let Some(mut guest) = guest() else { return };
    guest.signal(libc::SIGSTOP);
    guest.wait_for_stop();
    make_cooked(&guest.terminal);
    guest.signal(libc::SIGCONT);
    while !guest.is_raw() {
        std::thread::yield_now();
    }
    guest.type_keys(b"halt\r");
    guest.ends_with(0);
}

/// The signals that end a program by default and can be handled.
fn ending_signals() -> impl Iterator<Item = libc::c_int> {
    let others = [
        libc::SIGKILL,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGCONT,
        libc::SIGCHLD,
        libc::SIGURG,
        libc::SIGWINCH,
        // A write past the limit on file sizes is an error instead.
        libc::SIGXFSZ,
        // The engines use it for kicks.
        libc::SIGRTMIN() + 2,
        libc::SIGRTMIN() + 6,
    ];
    // The C library reserves those in between.
    (1..=libc::SIGSYS)
        .chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
        .filter(move |number| !others.contains(number))
}

#[test]
fn every_signal_that_ends_the_program_restores_the_terminal_first() {
    const IN_ORDER: [i32; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE];
    for number in ending_signals() {
        let Some(guest) = guest() else { return };
        assert!(guest.is_raw());
        guest.signal(number);
        guest.ends(|status| {
            let end = (status.code(), status.signal());
            let expected =
                if IN_ORDER.contains(&number) { (Some(128 + number), None) } else { (None, Some(number)) };
            assert_eq!(end, expected, "signal {number}");
        });
    }
}

#[test]
fn an_ignored_signal_stays_ignored() {
    for number in [libc::SIGHUP, libc::SIGUSR1, libc::SIGALRM, libc::SIGRTMIN() + 10] {
        let mut guest = start(&[], Some(number), |_| {});
        if !guest.read_until(&["> ", "paravane: "]).ends_with("> ") {
            return skip("engine", guest.read_until(&["\n"]));
        }
        guest.signal(number);
        guest.type_keys(b"mem\r");
        guest.read_until(&["> "]);
        guest.type_keys(b"halt\r");
        guest.ends_with(0);
    }
}

/// Nobody reads the terminal, and the guest waits in the middle of a write.
#[test]
fn a_blocked_terminal_can_be_left() {
    for machine in [&["--engine", "process"][..], &["--engine", "kvm"], &["--bare"]] {
        let Some(mut guest) = guest_with(machine) else { continue };
        for _ in 0..300 {
            guest.type_keys(b"help\r");
        }
        guest.type_keys(b"\x01x");
        guest.ends_with(0);
    }
}

/// As after Ctrl-S before the first output: Ctrl-A x still works, although the program waits for the terminal.
#[test]
fn a_terminal_that_blocked_before_the_guest_ran_can_be_left() {
    for machine in [&["--engine", "process"][..], &["--engine", "kvm"]] {
        if guest_with(machine).map(|mut guest| guest.child.kill()).is_none() {
            continue;
        }
        // SAFETY: a descriptor that is open, and numbers.
        let mut guest = start(machine, None, |terminal| unsafe {
            assert_eq!(libc::tcflow(terminal.as_raw_fd(), libc::TCOOFF), 0);
        });
        while !guest.is_raw() {
            std::thread::yield_now();
        }
        guest.type_keys(b"\x01x");
        guest.ends_with(0);
    }
}

/// The same for a shell on a virtio console.
const VIRTIO: [&str; 4] = ["--console", "stdio", "--cmdline", "console=virtio"];

#[test]
fn a_virtio_console_on_the_terminal_has_its_keys_and_its_size() {
    for machine in [&["--engine", "process"][..], &["--engine", "kvm"], &["--bare"]] {
        let Some(mut guest) = guest_with(&[&VIRTIO, machine].concat()) else { continue };
        assert!(guest.is_raw());
        for (columns, rows) in [(132, 50), (1, 1), (80, 24)] {
            resize(&guest.user, columns, rows);
            // The signal takes its time; this asks the shell until the size has arrived.
            let wanted = format!("virtio, {columns} columns, {rows} rows");
            loop {
                guest.type_keys(b"console\r");
                guest.read_until(&["console\r\n"]);
                if guest.read_until(&["> "]).contains(&wanted) {
                    break;
                }
            }
        }
        guest.type_keys(b"halt\r");
        guest.ends_with(0);
    }
}

#[test]
fn a_virtio_console_on_the_terminal_can_be_left() {
    let Some(mut guest) = guest_with(&VIRTIO) else { return };
    guest.type_keys(b"\x01h");
    guest.read_until(&["Ctrl-A x       leave"]);
    guest.type_keys(b"\x01x");
    guest.ends_with(0);
    let Some(guest) = guest_with(&VIRTIO) else { return };
    guest.signal(libc::SIGTERM);
    guest.ends_with(128 + libc::SIGTERM);
}

/// Nobody reads the terminal: the guest waits, and a thread that writes to the terminal like to a file would block.
#[test]
fn a_virtio_console_on_a_blocked_terminal_can_be_left() {
    let Some(mut guest) = guest_with(&VIRTIO) else { return };
    // Many more answers than the terminal and the queue hold.
    for _ in 0..300 {
        guest.type_keys(b"help\r");
    }
    guest.type_keys(b"\x01x");
    guest.ends_with(0);
}
