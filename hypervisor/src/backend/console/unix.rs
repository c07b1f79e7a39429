//! `--console unix=PATH`: a stream socket.
//!
//! It serves one program at a time. The two directions end separately, so that a program that has shut down its sending
//! half still receives the answer.

#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::backend::{Backend, NOTHING, Watch, Wish, watch};
use crate::backend::unix::{UnixError, bind};
use crate::host::socket;

/// A socket, and the program at its other end.
#[derive(Debug)]
pub struct Socket {
    peer: Option<Peer>,
    /// Waits for a program while there is none.
    listener: Option<UnixListener>,
    /// accept(2) failed because no descriptor was left. It is not tried again before the guest prints, because poll(2)
    /// would report the same connection again and again.
    deaf: bool,
}

#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    /// It will send nothing more.
    silent: bool,
    /// It has closed the connection; bytes from before may be left to read.
    gone: bool,
}

impl Socket {
    /// Connects to the program that listens on `path`.
    ///
    /// # Errors
    /// When none does.
    pub fn connect(path: &Path) -> Result<Self, UnixError> {
        let socket = UnixStream::connect(path).and_then(Self::connected);
        socket.map_err(|error| UnixError::Connect { path: path.to_owned(), error })
    }

    /// Listens on `path`.
    ///
    /// # Errors
    /// When the socket cannot be created.
    pub fn listen(path: &Path) -> Result<Self, UnixError> {
        let listener = bind(path).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        match listener {
            Ok(listener) => Ok(Self { peer: None, listener: Some(listener), deaf: false }),
            Err(error) => Err(UnixError::Listen { path: path.to_owned(), error }),
        }
    }

    /// Uses this connection, and no other after it.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn connected(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { peer: Some(Peer { stream, silent: false, gone: false }), listener: None, deaf: false })
    }

    /// Accepts the next connection, if one waits.
    fn accept_next(&mut self) {
        let Some(listener) = &self.listener else { return };
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                self.deaf = !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
                return;
            }
        };
        if stream.set_nonblocking(true).is_ok() {
            self.peer = Some(Peer { stream, silent: false, gone: false });
        }
    }

    /// Sends to the connected program; `None` without one.
    fn send(&mut self, bytes: &[u8]) -> Option<usize> {
        let peer = self.peer.as_mut().filter(|peer| !peer.gone)?;
        match socket::send(peer.stream.as_fd(), bytes, socket::NOW) {
            Ok(sent) => Some(sent),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Some(0),
            Err(_) => {
                peer.gone = true;
                self.forget();
                None
            }
        }
    }

    /// Closes a connection that has ended and has nothing left to read.
    fn forget(&mut self) {
        self.peer.take_if(|peer| peer.gone && peer.silent);
    }
}

impl Backend for Socket {
    fn watch(&self, wish: Wish) -> Watch {
        let (socket, events) = match (&self.peer, &self.listener) {
            (None, None) => return [NOTHING; 3],
            (None, Some(_)) if self.deaf => return [NOTHING; 3],
            (None, Some(listener)) => (listener.as_raw_fd(), libc::POLLIN),
            (Some(peer), _) => {
                let read = if wish.read && !peer.silent { libc::POLLIN } else { 0 };
                let write = if wish.write { libc::POLLOUT } else { 0 };
                // poll(2) would report the end of the connection again and again.
                if peer.gone && read == 0 {
                    return [NOTHING; 3];
                }
                (peer.stream.as_raw_fd(), read | write)
            }
        };
        [watch(socket, events), NOTHING, NOTHING]
    }

    fn ready(&mut self, [first, ..]: &Watch) {
        match &mut self.peer {
            None => self.accept_next(),
            Some(peer) => peer.gone |= first.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0,
        }
        self.forget();
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        if let Some(sent) = self.send(bytes) {
            return sent;
        }
        // The next program may be waiting already. It must not wait until the guest has read the input of the former
        // one.
        self.deaf = false;
        self.accept_next();
        self.send(bytes).unwrap_or(bytes.len())
    }

    fn read(&mut self, into: &mut [u8]) -> usize {
        let Some(peer) = self.peer.as_mut().filter(|peer| !peer.silent) else { return 0 };
        match (&peer.stream).read(into) {
            Ok(count) if count > 0 => return count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                // After the end of the connection, nothing more will come.
                peer.silent = peer.gone && error.kind() == ErrorKind::WouldBlock;
            }
            Ok(_) => peer.silent = true,
            Err(_) => (peer.silent, peer.gone) = (true, true),
        }
        self.forget();
        0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;

    use crate::backend::console::unix::*;

    fn pair() -> (UnixStream, Socket) {
        let (ours, other) = UnixStream::pair().unwrap();
        (ours, Socket::connected(other).unwrap())
    }

    fn typed(from: &mut Socket) -> Vec<u8> {
        let mut bytes = [0; 100];
        let count = from.read(&mut bytes);
        bytes[..count].to_vec()
    }

    const BOTH: Wish = Wish { read: true, write: true };

    #[test]
    fn output_waits_for_a_reader_that_does_not_read() {
        let (mut ours, mut end) = pair();
        let mut sent = 0;
        loop {
            match end.write(&[b'x'; 1000]) {
                0 => break,
                count => sent += count,
            }
        }
        let [first, ..] = end.watch(Wish { read: false, write: true });
        assert!(first.fd >= 0 && first.events == libc::POLLOUT);
        let mut bytes = vec![0; sent];
        ours.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, vec![b'x'; sent], "and nothing is lost");
        assert_eq!(end.write(b"more"), 4);
    }

    #[test]
    fn each_direction_ends_separately() {
        let (mut ours, mut end) = pair();
        ours.write_all(b"halt\n").unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        assert_eq!(typed(&mut end), b"halt\n");
        assert_eq!(typed(&mut end), b"");
        let [first, ..] = end.watch(BOTH);
        assert_eq!(first.events, libc::POLLOUT, "the input has ended");
        assert_eq!(end.write(b"bye"), 3);
        let mut bytes = [0; 3];
        ours.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"bye");
    }

    #[test]
    fn input_before_the_end_still_arrives() {
        let (mut ours, mut end) = pair();
        ours.write_all(b"last words").unwrap();
        drop(ours);
        end.ready(&[watch(0, 0), NOTHING, NOTHING].map(|fd| libc::pollfd { revents: libc::POLLHUP, ..fd }));
        assert!(end.watch(Wish { read: false, write: false }).iter().all(|fd| fd.fd == -1), "no spinning");
        assert_eq!(end.write(b"to nobody"), 9);
        assert_eq!(typed(&mut end), b"last words");
        assert_eq!(typed(&mut end), b"");
        assert!(end.watch(BOTH).iter().all(|fd| fd.fd == -1));
    }

    #[test]
    fn one_program_after_the_other() {
        let path = std::env::temp_dir().join(format!("paravane-console-unix-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        assert!(Socket::connect(&path).unwrap_err().to_string().contains("`,server`"));
        let mut end = Socket::listen(&path).unwrap();
        assert_eq!(end.write(b"to nobody"), 9);
        for name in ["first", "second"] {
            let mut caller = UnixStream::connect(&path).unwrap();
            // Without a call of poll(2): output goes to the program that has connected.
            assert_eq!(end.write(name.as_bytes()), name.len());
            let mut bytes = vec![0; name.len()];
            caller.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, name.as_bytes());
            caller.write_all(b"x").unwrap();
            assert_eq!(typed(&mut end), b"x");
            drop(caller);
            assert_eq!(typed(&mut end), b"");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
