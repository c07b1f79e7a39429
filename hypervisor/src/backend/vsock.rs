//! Socket devices: the host's side, AF_UNIX sockets with Firecracker's protocol.
//!
//! The guest connects to port `P` of the host: a program listens on the socket `PATH_P`. A program connects to port
//! `P` of the guest by connecting to `PATH` and sending `CONNECT P\n`. The answer is `OK Q\n`, where `Q` is the
//! program's own port, or the connection is closed.

use std::io::{self, Read};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The longest request that a caller may make: `CONNECT 4294967295\n`.
const LONGEST: usize = 19;

/// A program that has connected to `PATH` and has not yet named a port.
#[derive(Debug)]
pub(crate) struct Caller {
    pub socket: UnixStream,
    said: Vec<u8>,
}

/// A caller's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// It has not arrived completely.
    Incomplete,
    /// The guest's port to connect to.
    Port(u32),
    /// It is malformed.
    Nonsense,
}

impl Caller {
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, said: Vec::with_capacity(LONGEST) })
    }

    /// Reads the request, and no byte past the end of its line: the rest is for the guest.
    pub fn listen(&mut self) -> Call {
        while self.said.len() < LONGEST {
            let mut byte = [0];
            match (&self.socket).read(&mut byte) {
                Ok(1) if byte == *b"\n" => return understood(&self.said).map_or(Call::Nonsense, Call::Port),
                Ok(1) => self.said.extend_from_slice(&byte),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Call::Incomplete,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return Call::Nonsense,
            }
        }
        Call::Nonsense
    }
}

fn understood(line: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The path of the socket for a port of the host.
pub(crate) fn path_of_port(base: &Path, port: u32) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// Connects to a socket without waiting: fails if the listener's queue is full. (The standard library would wait.)
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: all zeroes are a socket address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    address.sun_path.iter_mut().zip(bytes).for_each(|(to, from)| *to = libc::c_char::from_ne_bytes([*from]));
    let len = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: only numbers are passed.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the address is live, and `len` of its bytes are.
    let result =
        unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len as libc::socklen_t) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(UnixStream::from(socket)) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use crate::backend::vsock::*;

    #[test]
    fn requests_are_parsed_and_bytes_after_them_are_not_read() {
        let hear = |said: &str| {
            let (mut ours, other) = UnixStream::pair().unwrap();
            ours.write_all(said.as_bytes()).unwrap();
            let mut caller = Caller::new(other).unwrap();
            let call = caller.listen();
            let mut rest = [0; 8];
            let rest_len = (&caller.socket).read(&mut rest).unwrap_or(0);
            (call, rest[..rest_len].to_vec())
        };
        assert_eq!(hear("CONNECT 52\nhello"), (Call::Port(52), b"hello".to_vec()));
        assert_eq!(hear("CONNECT 4294967295\n"), (Call::Port(u32::MAX), vec![]));
        assert_eq!(hear("CONNECT 5").0, Call::Incomplete);
        for bad in [
            "CONNECT 4294967296\n",
            "CONNECT \n",
            "CONNECT +5\n",
            "connect 5\n",
            "\n",
            "CONNECT 00000000000000",
        ] {
            assert_eq!(hear(bad).0, Call::Nonsense, "{bad:?}");
        }
    }

    #[test]
    fn connecting_does_not_wait() {
        let base = std::env::temp_dir().join(format!("paravane-vsock-host-{}", std::process::id()));
        let path = path_of_port(&base, 9);
        assert!(path.to_str().unwrap().ends_with("_9"));
        let _ = std::fs::remove_file(&path);
        assert!(connect(&path).is_err());
        let listener = UnixListener::bind(&path).unwrap();
        let mut held = Vec::new();
        while let Ok(socket) = connect(&path) {
            held.push(socket);
        }
        assert!(!held.is_empty(), "until its queue was full");
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        assert!(connect(Path::new(&"x".repeat(200))).is_err());
    }
}
