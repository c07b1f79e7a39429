//! What the network is served: a web page, a sink for bytes, a source of them.

use alloc::format;
use alloc::string::String;
use alloc::vec;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use crate::machine::{Current, Machine};

/// What there is, for people.
pub const OFFER: &str = "http on port 80, a sink on port 9, a source on port 19";
const HTTP_PORT: u16 = 80;
/// RFC 863.
const SINK_PORT: u16 = 9;
/// RFC 864; without its line structure.
const SOURCE_PORT: u16 = 19;
/// Connections to the web server at a time.
const BROWSERS: usize = 4;
/// The longest request that is read.
const REQUEST: usize = 1024;
/// Buffers for throughput, in one direction.
const BIG: usize = 64 << 10;

pub struct Services {
    browsers: [Browser; BROWSERS],
    sink: SocketHandle,
    source: SocketHandle,
    requests: u64,
    sunk: u64,
}

/// A connection to the web server, and what it has asked so far.
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
        let (sink, source) = (sockets.add(socket(BIG, 512)), sockets.add(socket(512, BIG)));
        Self { browsers, sink, source, requests: 0, sunk: 0 }
    }

    /// Does what there is to do; whether that was anything.
    pub fn serve(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let mut busy = self.serve_sink(sockets.get_mut(self.sink));
        busy |= serve_source(sockets.get_mut(self.source));
        for browser in &mut self.browsers {
            let socket = sockets.get_mut(browser.socket);
            busy |= browser.serve(socket, &mut self.requests, self.sunk);
        }
        busy
    }

    fn serve_sink(&mut self, socket: &mut Socket<'_>) -> bool {
        if listening(socket, SINK_PORT) {
            return false;
        }
        let mut count = 0;
        while let Ok(taken) = socket.recv(|bytes| (bytes.len(), bytes.len())) {
            if taken == 0 {
                break;
            }
            count += taken;
        }
        self.sunk += count as u64;
        if !socket.may_recv() && socket.state() == State::CloseWait {
            socket.close();
        }
        count != 0
    }
}

fn serve_source(socket: &mut Socket<'_>) -> bool {
    if listening(socket, SOURCE_PORT) {
        return false;
    }
    if socket.state() == State::CloseWait {
        socket.close();
    }
    let fill = |bytes: &mut [u8]| {
        bytes.fill(b'x');
        (bytes.len(), bytes.len())
    };
    socket.send(fill).is_ok_and(|count| count != 0)
}

/// Whether a socket waits for somebody; one that is done with somebody does so from now on.
fn listening(socket: &mut Socket<'_>, port: u16) -> bool {
    if !socket.is_open() {
        // A port that is not 0, and a socket that is closed: it does not fail.
        let _ = socket.listen(port);
    }
    socket.is_listening()
}

impl Browser {
    fn serve(&mut self, socket: &mut Socket<'_>, requests: &mut u64, sunk: u64) -> bool {
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

fn answer(request: &[u8], requests: u64, sunk: u64) -> String {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/")) => {
            let up = Current::clock() / 1_000_000;
            let name = Current::NAME;
            let body = format!(
                "<!doctype html><title>Paravane</title><h1>Hello from a Paravane guest</h1>\n\
                 <p>machine: {name}<br>clock: {up} ms<br>request: {requests}<br>sunk: {sunk} bytes\n"
            );
            ("200 OK", body)
        }
        (Some(b"GET"), Some(_)) => ("404 Not Found", String::from("There is only one page: /\n")),
        (Some(_), Some(_)) => ("501 Not Implemented", String::from("GET is all that there is.\n")),
        _ => ("400 Bad Request", String::from("That is no request.\n")),
    };
    let len = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )
}
