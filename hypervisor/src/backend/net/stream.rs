//! Frames over a stream socket: four bytes of length, most significant first, then the frame. This is the protocol of
//! passt and of QEMU's `-netdev stream`.
//!
//! Frames are collected in buffers of fixed size, so that one system call moves many. The other program may have bugs:
//! an impossible length ends the connection, because the start of the next frame is then unknown.

#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use super::backend::{Backend, MAX_FRAME, Received, Sent, Watch};
use super::header::{HEADER_LEN, Header};
use super::scatter_list::ScatterList;
use crate::host::socket;

/// Bytes in front of each frame.
const PREFIX: usize = 4;
/// Bytes of an Ethernet header, and so the shortest frame.
const MIN_FRAME: usize = 14;
/// Bytes of each buffer; the longest frame fits.
const BUFFER: usize = 256 << 10;
const _: () = assert!(PREFIX + MAX_FRAME <= BUFFER);

/// The host's end of a connection; accepts the next one if it listens.
#[derive(Debug)]
pub struct Framed {
    socket: Option<UnixStream>,
    /// Waits for a connection while there is none.
    listener: Option<UnixListener>,
    /// accept(2) failed because no descriptor was left. It is not tried again before the guest sends a frame, because
    /// poll(2) would report the same connection again and again.
    deaf: bool,
    input: Input,
    output: Output,
}

/// Bytes that were received and not yet consumed.
#[derive(Debug)]
struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Bytes to be sent, of which `sent` bytes are sent already.
#[derive(Debug)]
struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

/// The other side sent an impossible length.
struct Nonsense;

impl Input {
    fn waiting(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }
    /// The next frame, once all of it has arrived.
    fn frame(&self) -> Result<Option<&[u8]>, Nonsense> {
        let Some((prefix, rest)) = self.waiting().split_first_chunk::<PREFIX>() else { return Ok(None) };
        let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if len > MAX_FRAME { Err(Nonsense) } else { Ok(rest.get(..len)) }
    }
    fn is_complete(&self) -> bool {
        !matches!(self.frame(), Ok(None))
    }
    /// Drops the next frame, which is `len` bytes long.
    fn drop_frame(&mut self, len: usize) {
        self.start = (self.start + PREFIX + len).min(self.end);
    }
    /// Reads as much as fits; false at the end of the stream.
    fn fill(&mut self, mut from: &UnixStream) -> io::Result<bool> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        if room.is_empty() {
            return Ok(true);
        }
        let read = from.read(room)?;
        self.end += read;
        Ok(read > 0)
    }
}

impl Output {
    /// Appends a frame if it fits; returns whether it did.
    fn push(&mut self, frame: &ScatterList<'_>) -> bool {
        let len = frame.bytes();
        if self.bytes.len() + PREFIX + len > BUFFER {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        let at = self.bytes.len() + PREFIX;
        let Some(prefix) = u32::try_from(len).ok().filter(|_| at + len <= BUFFER) else { return false };
        self.bytes.extend_from_slice(&prefix.to_be_bytes());
        self.bytes.resize(at + len, 0);
        frame.copy_out(0, self.bytes.get_mut(at..).unwrap_or_default());
        true
    }
    /// Sends as much as the socket takes.
    fn flush(&mut self, to: &UnixStream) -> io::Result<()> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            self.sent += socket::send(to.as_fd(), rest, socket::NOW)?;
        }
        self.clear();
        Ok(())
    }
    fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
    }
}

/// Whether an error is only temporary.
fn is_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl Framed {
    fn new(socket: Option<UnixStream>, listener: Option<UnixListener>) -> Self {
        let input = Input { bytes: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0 };
        Self {
            socket,
            listener,
            deaf: false,
            input,
            output: Output { bytes: Vec::with_capacity(BUFFER), sent: 0 },
        }
    }
    /// Uses this connection. When it breaks, the network is down for good.
    pub fn connected(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::new(Some(socket), None))
    }
    /// Waits for a connection, and for the next one when that breaks. Serves one at a time.
    pub fn listening(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::new(None, Some(listener)))
    }

    fn hang_up(&mut self) {
        self.socket = None;
        self.output.clear();
    }
    fn fill(&mut self) {
        let Some(socket) = &self.socket else { return };
        match self.input.fill(socket) {
            Ok(true) => {}
            Err(error) if is_for_now(&error) => {}
            Ok(false) | Err(_) => self.hang_up(),
        }
    }
    fn accept_next(&mut self) {
        let Some(listener) = &self.listener else { return };
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) => {
                self.deaf = !is_for_now(&error);
                return;
            }
        };
        if socket.set_nonblocking(true).is_ok() {
            (self.input.start, self.input.end) = (0, 0);
            self.socket = Some(socket);
        }
    }
}

impl Backend for Framed {
    fn is_up(&self) -> bool {
        self.socket.is_some()
    }
    fn watch(&self, receive: bool) -> Option<Watch> {
        let Some(socket) = &self.socket else {
            let listener = self.listener.as_ref().filter(|_| !self.deaf)?;
            return Some(Watch { fd: listener.as_raw_fd(), events: libc::POLLIN });
        };
        let read = if receive { libc::POLLIN } else { 0 };
        let write = if self.output.bytes.is_empty() { 0 } else { libc::POLLOUT };
        Some(Watch { fd: socket.as_raw_fd(), events: read | write })
    }
    fn ready(&mut self, revents: libc::c_short) {
        if self.socket.is_none() {
            return self.accept_next();
        }
        if revents & libc::POLLIN != 0 {
            self.fill();
        }
        // The last read: the socket is closed, and what does not fit into the buffer is lost.
        if revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
            self.fill();
            self.hang_up();
        }
        self.flush();
    }
    fn send(&mut self, _: &Header, frame: &mut ScatterList<'_>) -> Sent {
        self.deaf = false;
        if self.socket.is_none() || self.output.push(frame) {
            return Sent::Done;
        }
        self.flush();
        if self.socket.is_none() || self.output.push(frame) { Sent::Done } else { Sent::Later }
    }
    fn flush(&mut self) {
        let Some(socket) = &self.socket else { return };
        match self.output.flush(socket) {
            Ok(()) => {}
            Err(error) if is_for_now(&error) => {}
            Err(_) => self.hang_up(),
        }
    }
    fn receive(&mut self, into: &mut ScatterList<'_>) -> Received {
        if !self.input.is_complete() {
            self.fill();
        }
        match self.input.frame() {
            Ok(None) => Received::Nothing,
            Ok(Some(frame)) => {
                let (len, total) = (frame.len(), HEADER_LEN + frame.len());
                let fits = len >= MIN_FRAME && total <= into.bytes();
                if fits {
                    into.copy_in(0, &[0; HEADER_LEN]);
                    into.copy_in(HEADER_LEN, frame);
                }
                self.input.drop_frame(len);
                if fits { Received::Frame(total) } else { Received::Lost }
            }
            Err(Nonsense) => {
                (self.input.start, self.input.end) = (0, 0);
                self.hang_up();
                Received::Nothing
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use vm_memory::VolatileSlice;

    use crate::backend::net::stream::*;

    impl Framed {
        /// Whether [`Backend::receive`] would return a frame, or report a lost one.
        fn has_frames(&self) -> bool {
            self.input.is_complete()
        }
    }

    fn pair() -> (UnixStream, Framed) {
        let (ours, other) = UnixStream::pair().unwrap();
        (ours, Framed::connected(other).unwrap())
    }
    fn receive(from: &mut Framed, room: usize) -> (Received, Vec<u8>) {
        let mut memory = vec![0xee; room];
        let mut pieces = ScatterList::default();
        pieces.push(&VolatileSlice::from(&mut memory[..])).unwrap();
        let received = from.receive(&mut pieces);
        drop(pieces);
        (received, memory)
    }
    fn send(to: &mut Framed, frame: &mut [u8]) -> Sent {
        let mut pieces = ScatterList::default();
        pieces.push(&VolatileSlice::from(frame)).unwrap();
        to.send(&Header::default(), &mut pieces)
    }
    fn framed(frame: &[u8]) -> Vec<u8> {
        [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
    }

    #[test]
    fn frames_arrive_whole_however_the_stream_is_divided() {
        let (mut ours, mut host) = pair();
        let stream = [framed(&[7; 60]), framed(&[8; 1514]), framed(&[]), framed(&[9; 14])].concat();
        let mut got = Vec::new();
        for part in stream.chunks(11) {
            ours.write_all(part).unwrap();
            loop {
                match receive(&mut host, 1526) {
                    (Received::Frame(len), memory) => {
                        assert_eq!(memory[..HEADER_LEN], [0; HEADER_LEN]);
                        got.push((len - HEADER_LEN, memory[HEADER_LEN]));
                        assert!(memory[HEADER_LEN..len].iter().all(|&b| b == memory[HEADER_LEN]));
                        assert!(memory[len..].iter().all(|&b| b == 0xee));
                    }
                    (Received::Lost, _) => got.push((0, 0)),
                    (Received::Nothing, _) => break,
                }
            }
        }
        assert_eq!(got, [(60, 7), (1514, 8), (0, 0), (14, 9)]);
        assert!(host.is_up());
    }

    #[test]
    fn a_frame_that_does_not_fit_is_lost_and_the_next_is_not() {
        let (mut ours, mut host) = pair();
        ours.write_all(&[framed(&[1; 2000]), framed(&[2; 60])].concat()).unwrap();
        assert_eq!(receive(&mut host, 1526).0, Received::Lost);
        assert!(host.has_frames());
        assert_eq!(receive(&mut host, 1526).0, Received::Frame(72));
        assert!(!host.has_frames());
    }

    #[test]
    fn an_impossible_length_ends_the_connection() {
        for len in [MAX_FRAME as u32 + 1, 0x8000_0000, u32::MAX] {
            let (mut ours, mut host) = pair();
            ours.write_all(&len.to_be_bytes()).unwrap();
            assert_eq!(receive(&mut host, 1526).0, Received::Nothing);
            assert!(!host.is_up() && !host.has_frames() && host.watch(true).is_none());
            assert_eq!(send(&mut host, &mut [0; 60]), Sent::Done, "into the void");
        }
    }

    #[test]
    fn frames_are_sent_together_and_wait_for_room() {
        let (ours, mut host) = pair();
        let mut sent = 0usize;
        while send(&mut host, &mut [5; 1000]) == Sent::Done {
            sent += 1;
        }
        assert!(host.watch(false).unwrap().events & libc::POLLOUT != 0);
        ours.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        while bytes.len() < sent * 1004 {
            let before = bytes.len();
            let _ = (&ours).read_to_end(&mut bytes);
            host.ready(libc::POLLOUT);
            assert!(bytes.len() > before || bytes.len() >= sent * 1004 || host.is_up());
        }
        assert_eq!(bytes, framed(&[5; 1000]).repeat(sent));
        assert_eq!(host.watch(false).unwrap().events, 0);
        assert_eq!(send(&mut host, &mut [5; 1000]), Sent::Done);
    }

    #[test]
    fn frames_before_the_end_still_arrive() {
        let (mut ours, mut host) = pair();
        ours.write_all(&framed(&[3; 60])).unwrap();
        drop(ours);
        host.ready(libc::POLLIN | libc::POLLHUP);
        assert!(!host.is_up() && host.has_frames() && host.watch(true).is_none());
        assert_eq!(receive(&mut host, 1526).0, Received::Frame(72));
        assert_eq!(receive(&mut host, 1526).0, Received::Nothing);
    }

    #[test]
    fn a_listener_takes_the_next_connection() {
        let dir = std::env::temp_dir().join(format!("paravane-framed-{}", std::process::id()));
        let _ = std::fs::remove_file(&dir);
        let mut host = Framed::listening(UnixListener::bind(&dir).unwrap()).unwrap();
        for _ in 0..2 {
            assert!(!host.is_up());
            host.ready(libc::POLLIN);
            assert!(!host.is_up(), "nobody called");
            let mut caller = UnixStream::connect(&dir).unwrap();
            host.ready(libc::POLLIN);
            assert!(host.is_up());
            caller.write_all(&framed(&[1; 20])).unwrap();
            assert_eq!(receive(&mut host, 100).0, Received::Frame(32));
            drop(caller);
            assert_eq!(receive(&mut host, 100).0, Received::Nothing);
        }
        std::fs::remove_file(&dir).unwrap();
    }

    #[test]
    fn a_caller_that_cannot_be_accepted_is_not_polled_for() {
        // A socket that does not listen: the kernel refuses to accept, as it does when no descriptor is left.
        let (socket, _other) = UnixStream::pair().unwrap();
        let listener = UnixListener::from(std::os::fd::OwnedFd::from(socket));
        let mut host = Framed::listening(listener).unwrap();
        assert!(host.watch(true).is_some());
        host.ready(libc::POLLIN);
        assert!(!host.is_up() && host.watch(true).is_none());
        assert_eq!(send(&mut host, &mut [0; 60]), Sent::Done);
        assert!(host.watch(true).is_some(), "the guest's next frame is the time to try again");
    }

    proptest! {
        #[test]
        fn no_stream_does_harm(
            stream in proptest::collection::vec(any::<u8>(), 0..300),
            room in 0usize..300,
        ) {
            let (mut ours, mut host) = pair();
            ours.write_all(&stream).unwrap();
            drop(ours);
            for _ in 0..stream.len() + 2 {
                if let (Received::Frame(len), _) = receive(&mut host, room) {
                    prop_assert!(len <= room);
                }
            }
            prop_assert!(!host.is_up() && !host.has_frames());
        }
    }
}
