//! The reference guest's shell on a virtio console, on each engine, paravirtual and on a bare PC.
//!
//! The other end converses, disconnects in the middle, or does not read. Missing engines are reported.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use skip::skip;

/// The program with a guest, and the lines of its standard output and error.
struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<Box<dyn Read>>,
}

impl Guest {
    fn start(machine: &[&str], console: &str) -> Self {
        let (output, both) = std::io::pipe().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_paravane"))
            .args(["run", "--timeout", "120s", "--cmdline", "console=virtio", "--console", console])
            .args(machine)
            .stdin(Stdio::piped())
            .stdout(both.try_clone().unwrap())
            .stderr(both)
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        Self { child, input, output: BufReader::new(Box::new(output)) }
    }

    /// Waits for the line that contains `part`; `None` if there is none.
    fn line_with(&mut self, part: &str) -> Option<String> {
        self.output.by_ref().lines().map_while(Result::ok).find(|line| line.contains(part))
    }

    /// Waits until the guest uses the console. If this returns false, this machine cannot run the guest.
    fn runs(&mut self) -> bool {
        let mut said = String::new();
        for line in self.output.by_ref().lines().map_while(Result::ok) {
            said += &line;
            if line.contains("console: the virtio console takes over") {
                return true;
            }
        }
        assert_eq!(self.child.wait().unwrap().code(), Some(1), "{said}");
        skip("engine", said);
        false
    }

    /// Waits for its end, which must have this status. Returns the rest of its output.
    fn ends(mut self, code: i32) -> String {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(code), "{rest}");
        rest
    }
}

/// Each engine, and each of the two machines.
fn machines() -> impl Iterator<Item = Vec<&'static str>> {
    let builds = [&[][..], &["--bare"]];
    let engines = ["kvm", "process"].into_iter();
    engines.flat_map(move |engine| builds.map(|build| [&["--engine", engine], build].concat()))
}

/// A path for a test's socket or file, which is deleted before the test and on drop.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("paravane-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Self(path)
    }
    fn option(&self, kind: &str, more: &str) -> String {
        format!("{kind}={}{more}", self.0.display())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Reads up to and including `end`.
fn read_until(from: &mut impl Read, end: &str) -> String {
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !seen.ends_with(end.as_bytes()) {
        if let Err(error) = from.read_exact(&mut byte) {
            panic!("no {end:?} ({error}) after: {}", String::from_utf8_lossy(&seen));
        }
        seen.push(byte[0]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// Types a command, and returns the output up to the next prompt.
fn ask(shell: &mut (impl Read + Write), command: &str) -> String {
    shell.write_all(command.as_bytes()).unwrap();
    shell.write_all(b"\r").unwrap();
    read_until(shell, "> ")
}

/// Gets the prompt of a shell that may still be busy with an earlier command.
fn greet(shell: &mut (impl Read + Write), word: &str) {
    shell.write_all(word.as_bytes()).unwrap();
    shell.write_all(b"\r").unwrap();
    read_until(shell, &format!("{word}: no such command; try `help`\n> "));
}

fn patient(socket: UnixStream) -> UnixStream {
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

/// A guest whose console connects to a socket of the test, after its first prompt.
fn called(machine: &[&str], place: &Place) -> Option<(Guest, UnixStream)> {
    let listener = UnixListener::bind(&place.0).unwrap();
    let mut guest = Guest::start(machine, &place.option("unix", ""));
    let mut shell = patient(listener.accept().unwrap().0);
    drop(std::fs::remove_file(&place.0));
    guest.runs().then(|| {
        // All output is here, from the first byte on: the connection was made before the guest started.
        assert_eq!(read_until(&mut shell, "> "), "type `help` for the commands\n> ");
        (guest, shell)
    })
}

#[test]
fn a_shell_over_a_socket() {
    let place = Place::new("console-called");
    for machine in machines() {
        let Some((guest, mut shell)) = called(&machine, &place) else { continue };
        assert!(ask(&mut shell, "console").starts_with("console\nconsole: virtio\n"), "{machine:?}");
        for _ in 0..20 {
            assert!(ask(&mut shell, "mem").contains("\nfree "), "{machine:?}");
        }
        shell.write_all(b"halt\r").unwrap();
        let mut last = String::new();
        shell.read_to_string(&mut last).unwrap();
        assert_eq!(last, "halt\n", "{machine:?}");
        assert_eq!(guest.ends(0), "", "{machine:?}: nothing more is on the first console");
    }
}

#[test]
fn programs_that_come_and_go() {
    let place = Place::new("console-server");
    for machine in machines() {
        let mut guest = Guest::start(&machine, &place.option("unix", ",server"));
        if !guest.runs() {
            continue;
        }
        for word in ["one", "two", "three", "four", "five"] {
            let mut shell = patient(UnixStream::connect(&place.0).unwrap());
            greet(&mut shell, word);
            assert!(ask(&mut shell, "mem").contains("\nfree "), "{machine:?}");
            // Disconnects while the guest answers.
            shell.write_all(b"help\rhelp\rhelp\rhelp\r").unwrap();
        }
        let mut shell = patient(UnixStream::connect(&place.0).unwrap());
        // The previous program may have left half a line.
        greet(&mut shell, "six");
        shell.write_all(b"halt\r").unwrap();
        guest.ends(0);
    }
}

fn unread(socket: &UnixStream) -> libc::c_int {
    let mut count = 0;
    // SAFETY: the descriptor is open, and the request fills one int.
    assert_eq!(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut count) }, 0);
    count
}

/// More than the socket and the queue hold: the guest must wait for the reader, and then continues.
#[test]
fn a_program_that_does_not_read_for_a_while_misses_nothing() {
    const COMMANDS: usize = 400;
    let place = Place::new("console-slow");
    for machine in machines() {
        let Some((guest, mut shell)) = called(&machine, &place) else { continue };
        let answer = ask(&mut shell, "help");
        // In one piece, which fits into the socket's buffer.
        shell.write_all((String::from("help\r").repeat(COMMANDS) + "halt\r").as_bytes()).unwrap();
        // The reader lags behind, and the guest is far from finished.
        while unread(&shell) < 8192 {
            std::thread::yield_now();
        }
        let mut all = String::new();
        shell.read_to_string(&mut all).unwrap();
        assert!(all.len() > 250_000, "{machine:?}: more than a socket's 208 KiB: {}", all.len());
        assert!(all == answer.repeat(COMMANDS) + "halt\n", "{machine:?}: {} bytes", all.len());
        guest.ends(0);
    }
}

/// A guest that waits for a reader can still be ended.
#[test]
fn a_program_that_never_reads_does_not_keep_the_guest() {
    let place = Place::new("console-stuck");
    for machine in machines() {
        let Some((mut guest, mut shell)) = called(&machine, &place) else { continue };
        shell.set_nonblocking(true).unwrap();
        // Until the guest has stopped reading because it waits itself. Then all buffers are full.
        while shell.write(b"help\rhelp\rhelp\rhelp\r").is_ok() {}
        let pid = libc::pid_t::try_from(guest.child.id()).unwrap();
        // SAFETY: kill takes no pointers; `pid` is a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        assert_eq!(guest.child.wait().unwrap().code(), Some(128 + libc::SIGTERM), "{machine:?}");
    }
}

#[test]
fn a_panic_is_printed_on_both_consoles() {
    let place = Place::new("console-panic");
    for machine in machines() {
        let Some((guest, mut shell)) = called(&machine, &place) else { continue };
        shell.write_all(b"panic\r").unwrap();
        let mut last = String::new();
        shell.read_to_string(&mut last).unwrap();
        assert!(last.starts_with("panic\npanic: asked for at the shell at "), "{machine:?}: {last}");
        assert!(guest.ends(3).contains("panic: asked for at the shell at "), "{machine:?}");
    }
}

#[test]
fn a_shell_on_a_pseudo_terminal_that_is_opened_twice() {
    for machine in machines() {
        let mut guest = Guest::start(&machine, "pty");
        let Some(name) = guest.line_with("console") else { panic!("nothing was said") };
        let Some((_, path)) = name.split_once("paravane: the console is ") else {
            assert_eq!(guest.child.wait().unwrap().code(), Some(1), "{name}");
            skip("engine", name);
            continue;
        };
        if !guest.runs() {
            continue;
        }
        for word in ["once", "twice"] {
            let mut shell = File::options().read(true).write(true).open(path).unwrap();
            greet(&mut shell, word);
            assert!(ask(&mut shell, "console") == "console\nconsole: virtio\n> ", "{machine:?}");
        }
        let mut shell = File::options().read(true).write(true).open(path).unwrap();
        shell.write_all(b"halt\r").unwrap();
        guest.ends(0);
        assert!(!Path::new(path).exists(), "it goes with the guest");
    }
}

/// A bare PC has four interrupt lines for devices. The console shares one with the network interface, which is busy
/// during the input.
#[test]
fn a_shell_on_a_shared_line() {
    let place = Place::new("console-shared");
    for machine in machines() {
        let others = [&["--rng"][..], &["--net", "peer"].repeat(4)].concat();
        let Some((guest, mut shell)) = called(&[machine, others].concat(), &place) else { continue };
        for _ in 0..3 {
            shell.write_all(b"bench net-receive-64\r").unwrap();
            // One by one, as typed: each causes an interrupt, as far as the guest keeps up.
            (0..100).for_each(|_| shell.write_all(b"x\r").unwrap());
            assert!(read_until(&mut shell, "> ").contains(" ops=10000 ok=true "));
            for _ in 0..100 {
                assert_eq!(read_until(&mut shell, "> "), "x\nx: no such command; try `help`\n> ");
            }
        }
        shell.write_all(b"halt\r").unwrap();
        guest.ends(0);
    }
}

/// A file gives no input; the standard console still does.
#[test]
fn a_shell_into_a_file() {
    let place = Place::new("console-file");
    for machine in machines() {
        let mut guest = Guest::start(&machine, &place.option("file", ""));
        if !guest.runs() {
            continue;
        }
        guest.input.take().unwrap().write_all(b"uptime\nhalt\n").unwrap();
        guest.ends(0);
        let text = std::fs::read_to_string(&place.0).unwrap();
        assert!(text.starts_with("type `help` for the commands\n> uptime\nup "), "{machine:?}: {text}");
        assert!(text.ends_with("> halt\n"), "{machine:?}: {text}");
    }
}

#[test]
fn a_full_disk_does_not_stop_the_guest() {
    if !Path::new("/dev/full").exists() {
        return skip("dev-full", "this host has no /dev/full");
    }
    for machine in machines() {
        let mut guest = Guest::start(&machine, "file=/dev/full");
        if !guest.runs() {
            continue;
        }
        guest.input.take().unwrap().write_all(b"help\nhelp\nhalt\n").unwrap();
        let said = guest.ends(0);
        assert_eq!(said.matches("the console's output is lost from here on").count(), 1, "{said}");
    }
}

/// In a pipe: input goes to the virtio console, and both consoles print.
#[test]
fn a_shell_on_standard_input_and_output() {
    for machine in machines() {
        let mut guest = Guest::start(&machine, "stdio");
        if !guest.runs() {
            continue;
        }
        guest.input.as_mut().unwrap().write_all(b"console\nmem\nhalt\n").unwrap();
        let said = guest.ends(0);
        assert!(said.contains("console: virtio\n") && said.ends_with("> halt\n"), "{machine:?}: {said}");
    }
}

#[test]
fn a_guest_without_the_device_says_so() {
    let output = Command::new(env!("CARGO_BIN_EXE_paravane"))
        .args(["run", "--timeout", "60s", "--rng", "--cmdline", "console=virtio test=entropy"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(1) {
        return skip("engine", String::from_utf8_lossy(&output.stderr));
    }
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(said.contains("start the guest with one: `paravane run --console pty`"), "{said}");
    assert!(said.contains("test: name=entropy"), "and goes on: {said}");
}

/// The run ends, as it does without the device: nobody reads the output.
#[test]
fn a_reader_of_standard_output_that_leaves_ends_the_run() {
    for machine in machines() {
        let mut guest = Guest::start(&machine, "stdio");
        if !guest.runs() {
            continue;
        }
        let Guest { mut child, input, output } = guest;
        drop(output);
        input.unwrap().write_all(b"help\n").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGPIPE), "{machine:?}");
    }
}

/// A console truncates its file, and must not do so to a disk.
#[test]
fn a_disk_is_not_accepted_as_a_console_file() {
    let place = Place::new("console-disk");
    std::fs::write(&place.0, "precious").unwrap();
    let disk = place.0.to_str().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    let output =
        command.args(["run", "--disk", disk, "--console", &place.option("file", "")]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("paravane: --disk and --console are both given "), "{said}");
    assert_eq!(std::fs::read_to_string(&place.0).unwrap(), "precious");
}
