//! Sockets between a guest and programs on the host.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::guest::{Guest, everywhere};
use super::http::stream_of;

/// A guard against hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const ECHO_PORT: u32 = 7;

/// The path of a guest's sockets, which are deleted on drop.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let place =
            Self(std::env::temp_dir().join(format!("paravane-vsock-guest-{}-{name}", std::process::id())));
        place.clear();
        place
    }
    fn clear(&self) {
        for path in [self.0.clone(), self.of_port(9)] {
            let _ = std::fs::remove_file(path);
        }
    }
    fn of_port(&self, port: u32) -> PathBuf {
        PathBuf::from(format!("{}_{port}", self.0.display()))
    }
    fn guest(&self, options: &[&str]) -> Guest {
        let vsock = format!("cid=42,socket={}", self.0.display());
        let mut guest = Guest::start(options, &["--vsock", &vsock]);
        guest.must_say("type `help`");
        guest
    }
    /// A guest that runs the echo server.
    fn echo(&self, options: &[&str]) -> Guest {
        let mut guest = self.guest(options);
        guest.type_in("vsock\n");
        guest.must_say("vsock: address 42, echo on port 7");
        guest
    }
    /// A connection that has asked for a port of the guest.
    fn ask(&self, port: u32) -> BufReader<UnixStream> {
        let mut socket = UnixStream::connect(&self.0).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        writeln!(socket, "CONNECT {port}").unwrap();
        BufReader::new(socket)
    }
    /// A connection that the guest has accepted.
    fn call(&self) -> BufReader<UnixStream> {
        let mut socket = self.ask(ECHO_PORT);
        let mut line = String::new();
        socket.read_line(&mut line).unwrap();
        assert!(line.starts_with("OK "), "broken product: {line:?}");
        socket
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Runs a test on each engine and build, each with its own path.
fn each(name: &str, test: impl Fn(&Place, &[&str])) {
    for (number, options) in everywhere().iter().enumerate() {
        test(&Place::new(&format!("{name}-{number}")), options);
    }
}

fn stop(mut guest: Guest) {
    guest.type_in("\x03");
    guest.must_say("vsock: done");
    guest.end("halt\n");
}

/// More than all buffers on the way hold, in both directions at once, and half closed before the last byte returns.
#[test]
fn the_guest_echoes_to_the_last_byte() {
    each("echo", |place, options| {
        let guest = place.echo(options);
        for len in [0, 1, 300_000] {
            let mut socket = place.call();
            let bytes = stream_of(len);
            let mut writer = socket.get_ref().try_clone().unwrap();
            let sent = bytes.clone();
            let writing = thread::spawn(move || {
                writer.write_all(&sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut echoed = Vec::new();
            socket.read_to_end(&mut echoed).unwrap();
            writing.join().unwrap();
            assert!(
                echoed == bytes,
                "broken product: {} of {len} bytes came back, {options:?}",
                echoed.len()
            );
        }
        stop(guest);
    });
}

#[test]
fn a_connection_that_is_not_read_does_not_block_the_others() {
    each("slow", |place, options| {
        let guest = place.echo(options);
        let slow = place.call();
        slow.get_ref().set_nonblocking(true).unwrap();
        // Until nothing moves any more: each echo on the other connection shows that the guest has had its turn.
        let mut turns = 0;
        while turns < 20 {
            turns = if slow.get_ref().write(&[1; 0x1_0000]).is_ok() { 0 } else { turns + 1 };
            let mut quick = place.call();
            quick.get_mut().write_all(b"x").unwrap();
            let mut byte = [0];
            quick.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"x");
        }
        stop(guest);
    });
}

#[test]
fn a_hundred_connections_at_once_and_one_to_a_closed_port() {
    each("many", |place, options| {
        let guest = place.echo(options);
        let mut sockets: Vec<_> = (0..100).map(|_| place.call()).collect();
        for (number, socket) in (0..).zip(&mut sockets) {
            socket.get_mut().write_all(&[number]).unwrap();
        }
        for (number, socket) in (0..).zip(&mut sockets) {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [number]);
        }
        // Half of them disconnect without notice.
        sockets.truncate(50);
        // No server listens at this port, so the connection ends.
        assert_eq!(place.ask(ECHO_PORT + 1).read(&mut [0]).unwrap(), 0);
        let mut last = place.call();
        last.get_mut().write_all(b"!").unwrap();
        last.read_exact(&mut [0]).unwrap();
        stop(guest);
        // The guest and its device have ended.
        for socket in &mut sockets {
            assert_eq!(socket.read(&mut [0]).unwrap(), 0);
        }
    });
}

#[test]
fn the_guest_calls_the_host() {
    each("call", |place, options| {
        let mut guest = place.guest(options);
        // First nobody listens, then a listener appears.
        guest.type_in("vsock 9 hello\n");
        guest.must_say("vsock: refused");
        let listener = UnixListener::bind(place.of_port(9)).unwrap();
        guest.type_in("vsock 9 hello\n");
        let (mut socket, _) = listener.accept().unwrap();
        let mut said = String::new();
        // The guest shuts down its sending direction, and still receives.
        socket.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello\n");
        let answer: String = (0..5000).map(|line| format!("answer {line}\n")).collect();
        socket.write_all(answer.as_bytes()).unwrap();
        drop(socket);
        guest.must_say("answer 0");
        guest.must_say("answer 4999");
        guest.must_say("vsock: the host has closed the connection");
        // The socket's file is removed, so that nobody listens.
        std::fs::remove_file(place.of_port(9)).unwrap();
        guest.type_in("vsock 9 hello\n");
        guest.must_say("vsock: refused");
        guest.end("halt\n");
    });
}

#[test]
fn a_guest_that_is_killed_hangs_up() {
    each("kill", |place, options| {
        let mut guest = place.echo(options);
        let mut socket = place.call();
        guest.child.kill().unwrap();
        guest.finish();
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
        // The next guest uses the same socket.
        let guest = place.echo(options);
        let mut socket = place.call();
        socket.get_mut().write_all(b"again").unwrap();
        let mut again = [0; 5];
        socket.read_exact(&mut again).unwrap();
        assert_eq!(&again, b"again");
        drop(socket);
        stop(guest);
    });
}
