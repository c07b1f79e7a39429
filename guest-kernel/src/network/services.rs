//! The services: a web page, a sink for bytes, a source of bytes.

use alloc::format;
use alloc::string::String;
use alloc::vec;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::stack::{Application, Stack, Step};
use crate::console;
use crate::machine::{Current, Machine};

const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const HTTP_PORT: u16 = 80;
/// RFC 863.
const SINK_PORT: u16 = 9;
/// RFC 864, with other contents: each byte is its place in the stream, modulo [`PERIOD`].
const SOURCE_PORT: u16 = 19;
/// Not a power of two, so that a receiver detects any part that is missing or misplaced.
const PERIOD: u64 = 251;
/// Connections to the sink, and to the source, at a time. One more than is needed: a socket listens again only when
/// the loop has seen that its connection is closed, and the next client may connect before that.
const STREAMS: usize = 2;
/// Connections to the web server at a time.
const BROWSERS: usize = 4;
/// The longest request.
const REQUEST: usize = 1024;
/// Buffers for throughput, in one direction.
const BIG: usize = 64 << 10;
/// Buffers for the direction that carries no data.
const SMALL: usize = 512;

pub struct Services {
    browsers: [Browser; BROWSERS],
    sinks: [SocketHandle; STREAMS],
    sources: [Source; STREAMS],
    requests: u64,
    sunk: Sunk,
}

/// A connection to the source, and how many bytes were sent on it.
struct Source {
    socket: SocketHandle,
    given: u64,
}

/// What the sink received on all connections.
#[derive(Clone, Copy, Default)]
struct Sunk {
    bytes: u64,
    /// The sum of the bytes, and the sum of that sum after each byte, which depends on their order.
    sums: (u64, u64),
}

impl Sunk {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        let (a, b) = self.sums;
        self.sums = bytes.iter().fold((a, b), |(a, b), byte| {
            let a = a.wrapping_add(u64::from(*byte));
            (a, b.wrapping_add(a))
        });
    }
}

/// A connection to the web server, and the part of the request received so far.
struct Browser {
    socket: SocketHandle,
    request: [u8; REQUEST],
    len: usize,
    answered: bool,
}

fn socket(receive: usize, send: usize) -> Socket<'static> {
    Socket::new(SocketBuffer::new(vec![0; receive]), SocketBuffer::new(vec![0; send]))
}

impl Services {
    pub fn new(sockets: &mut SocketSet<'static>) -> Self {
        let browsers = core::array::from_fn(|_| {
            let socket = sockets.add(socket(REQUEST, 2048));
            Browser { socket, request: [0; REQUEST], len: 0, answered: false }
        });
        let sinks = core::array::from_fn(|_| sockets.add(socket(BIG, SMALL)));
        let sources = core::array::from_fn(|_| Source { socket: sockets.add(socket(SMALL, BIG)), given: 0 });
        Self { browsers, sinks, sources, requests: 0, sunk: Sunk::default() }
    }

    /// Serves all connections; returns whether there was anything to do.
    fn serve(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let mut busy = false;
        for sink in self.sinks {
            busy |= self.sunk.serve(sockets.get_mut(sink));
        }
        for source in &mut self.sources {
            busy |= source.serve(sockets.get_mut(source.socket));
        }
        for browser in &mut self.browsers {
            let socket = sockets.get_mut(browser.socket);
            busy |= browser.serve(socket, &mut self.requests, self.sunk);
        }
        busy
    }
}

impl Sunk {
    /// Takes the bytes received on a connection to the sink; returns whether there were any.
    fn serve(&mut self, socket: &mut Socket<'_>) -> bool {
        if listening(socket, SINK_PORT) {
            return false;
        }
        let before = self.bytes;
        let mut take = |bytes: &mut [u8]| {
            self.take(bytes);
            (bytes.len(), bytes.len())
        };
        while socket.recv(&mut take).is_ok_and(|taken| taken != 0) {}
        if !socket.may_recv() && socket.state() == State::CloseWait {
            socket.close();
        }
        self.bytes != before
    }
}

impl Source {
    /// Sends as many bytes as there is room for; returns whether there were any.
    fn serve(&mut self, socket: &mut Socket<'_>) -> bool {
        if listening(socket, SOURCE_PORT) {
            self.given = 0;
            return false;
        }
        if socket.state() == State::CloseWait {
            socket.close();
        }
        let fill = |bytes: &mut [u8]| {
            (self.given..).zip(bytes.iter_mut()).for_each(|(place, byte)| *byte = (place % PERIOD) as u8);
            (bytes.len(), bytes.len())
        };
        let count = socket.send(fill).unwrap_or(0);
        self.given += count as u64;
        count != 0
    }
}

impl Application for Services {
    const OFFER: &'static str = "; http on port 80, a sink on port 9, a source on port 19";

    fn step(&mut self, stack: &mut Stack) -> Step {
        let busy = self.serve(&mut stack.sockets);
        match console::try_read() {
            Some(INTERRUPT | END) => Step::Done,
            // Other typed bytes are ignored.
            Some(_) => Step::Again,
            None if busy => Step::Again,
            None => Step::Wait(None),
        }
    }
}

/// Whether a socket waits for a connection. A closed socket does so from now on.
fn listening(socket: &mut Socket<'_>, port: u16) -> bool {
    if !socket.is_open() {
        // Does not fail: the port is not 0, and the socket is closed.
        let _ = socket.listen(port);
    }
    socket.is_listening()
}

impl Browser {
    fn serve(&mut self, socket: &mut Socket<'_>, requests: &mut u64, sunk: Sunk) -> bool {
        if listening(socket, HTTP_PORT) {
            (self.len, self.answered) = (0, false);
            return false;
        }
        if self.answered || !socket.may_send() {
            return false;
        }
        let free = &mut self.request[self.len..];
        let count = socket.recv_slice(free).unwrap_or(0);
        self.len += count;
        let request = &self.request[..self.len];
        let whole = request.windows(4).any(|end| end == b"\r\n\r\n");
        if !whole && self.len < REQUEST && socket.may_recv() {
            return count != 0;
        }
        *requests += 1;
        let answer = answer(if whole { request } else { &[] }, *requests, sunk);
        // The buffer has room for any of the answers.
        let _ = socket.send_slice(answer.as_bytes());
        socket.close();
        self.answered = true;
        true
    }
}

fn answer(request: &[u8], requests: u64, sunk: Sunk) -> String {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/")) => {
            let up = Current::clock() / 1_000_000;
            let name = Current::NAME;
            let body = format!(
                "<!doctype html><title>Paravane</title><h1>Hello from a Paravane guest</h1>\n\
                 <p>machine: {name}<br>clock: {up} ms<br>request: {requests}<br>sunk: {} bytes, sums {:x} {:x}\n",
                sunk.bytes, sunk.sums.0, sunk.sums.1
            );
            ("200 OK", body)
        }
        (Some(b"GET"), Some(_)) => ("404 Not Found", String::from("The only page is /\n")),
        (Some(_), Some(_)) => ("501 Not Implemented", String::from("Only GET is implemented.\n")),
        _ => ("400 Bad Request", String::from("That is not an HTTP request.\n")),
    };
    let len = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )
}
