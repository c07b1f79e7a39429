//! An HTTP client: fetches one page and prints it.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddrV4;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;
use smoltcp::wire::{IpAddress, IpEndpoint};

use super::stack::{Application, Stack, Step};
use crate::console;
use crate::machine::{Current, Machine};

const HTTP_PORT: u16 = 80;
/// The first dynamic port (RFC 6335, section 6).
const FIRST_PORT: u64 = 49152;
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// Bytes of the answer that are printed.
const SHOWN: usize = 4096;
/// How long the client waits for an address, and for a silent server.
const PATIENCE_MS: u64 = 10_000;

/// A request and its answer.
pub struct Fetch {
    socket: SocketHandle,
    target: SocketAddrV4,
    started: u64,
    asked: bool,
    connected: bool,
    shown: Vec<u8>,
    count: u64,
    complete: bool,
}

/// Parses an address with or without a port.
pub fn target(text: &str) -> Option<SocketAddrV4> {
    let with_port = text.parse().ok();
    with_port.or_else(|| Some(SocketAddrV4::new(text.parse().ok()?, HTTP_PORT)))
}

impl Fetch {
    pub fn new(sockets: &mut SocketSet<'static>, target: SocketAddrV4) -> Self {
        let mut socket = Socket::new(SocketBuffer::new(vec![0; 16 << 10]), SocketBuffer::new(vec![0; 512]));
        socket.set_timeout(Some(Duration::from_millis(PATIENCE_MS)));
        let (socket, started) = (sockets.add(socket), Current::clock());
        let (asked, connected, complete) = (false, false, false);
        Self { socket, target, started, asked, connected, shown: Vec::new(), count: 0, complete }
    }

    fn connect(&mut self, stack: &mut Stack) {
        let remote = IpEndpoint::new(IpAddress::Ipv4(*self.target.ip()), self.target.port());
        let port = FIRST_PORT + self.started / 1000 % (1 << 14);
        let handle = self.socket;
        let (context, sockets) = stack.context();
        // Fails for port 0 or an address that is not unicast: the socket stays closed, which ends the request.
        let _ = sockets.get_mut::<Socket<'_>>(handle).connect(context, remote, port as u16);
        self.connected = true;
    }

    fn take(&mut self, socket: &mut Socket<'_>) -> bool {
        let before = self.count;
        while let Ok(taken) = socket.recv(|bytes| {
            let room = SHOWN - self.shown.len();
            self.shown.extend_from_slice(&bytes[..bytes.len().min(room)]);
            (bytes.len(), bytes.len())
        }) {
            if taken == 0 {
                break;
            }
            self.count += taken as u64;
        }
        self.count != before
    }
}

impl Application for Fetch {
    const OFFER: &'static str = "";

    fn step(&mut self, stack: &mut Stack) -> Step {
        if console::take_interrupt() {
            return Step::Done;
        }
        if !self.connected {
            if stack.address().is_some() {
                self.connect(stack);
                return Step::Again;
            }
            let end = self.started + PATIENCE_MS * 1_000_000;
            return if Current::clock() < end { Step::Wait(Some(end)) } else { Step::Done };
        }
        let socket = stack.sockets.get_mut::<Socket<'_>>(self.socket);
        if !self.asked && socket.may_send() {
            // The buffer has room for the request.
            self.asked = socket.send_slice(REQUEST).is_ok();
            return Step::Again;
        }
        if self.take(socket) {
            return Step::Again;
        }
        match socket.state() {
            // The server has sent everything.
            State::CloseWait => {
                self.complete = true;
                socket.close();
                Step::Again
            }
            State::Closed | State::TimeWait => Step::Done,
            _ => Step::Wait(None),
        }
    }
}

impl fmt::Display for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.shown.split(|byte| *byte == b'\n') {
            let printable = |byte: &&u8| matches!(byte, b' '..=b'~');
            line.iter().filter(printable).try_for_each(|byte| write!(f, "{}", char::from(*byte)))?;
            writeln!(f)?;
        }
        let Self { target, count, complete, .. } = self;
        write!(f, "fetch: target={target} bytes={count} complete={complete}")
    }
}
