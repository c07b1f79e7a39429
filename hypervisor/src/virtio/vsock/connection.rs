//! One connection between a port of the guest and a socket of the host.
//!
//! Bytes from the guest wait in a buffer of [`BUFFER`] bytes until the socket takes them. The guest knows how much
//! room there is (virtio 1.2, section 5.10.6.3); if it sends more, the connection ends. Bytes for the guest stay in
//! the socket until the guest has room. The memory of a connection is therefore bounded, whatever either side does.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use super::packet::{Header, NO_MORE_RECEIVING, NO_MORE_SENDING, Ports, op};
use crate::host::socket;

/// The most bytes from the guest that a connection holds.
pub(super) const BUFFER: usize = 64 << 10;
/// When the guest does not know of this many free bytes, it gets a credit update.
const WORTH_TELLING: u32 = BUFFER as u32 / 4;

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The guest has not answered the host's request, and may not have received it yet.
    Requested,
    Open,
    /// The next packet to the guest is the last one: a reset.
    Over,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    socket: UnixStream,
    state: State,
    /// Control packets that have to be sent to the guest.
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
    /// Shutdown flags that have to be sent to the guest, and those that were sent.
    shutdown: u32,
    shut: u32,
    /// Shutdown flags of the guest.
    guest_shut: u32,
    /// Whether there may be bytes in the socket.
    readable: bool,
    /// The host's program has closed its end. The socket is not polled any more, because poll(2) would report that
    /// again and again.
    hung_up: bool,
    /// Bytes from the guest, of which the socket has taken the first `written`.
    buffer: Vec<u8>,
    written: usize,
    /// The number of bytes passed on, and the number that the guest was last told, both modulo 2^32.
    forwarded: u32,
    told: u32,
    /// The number of bytes given to the guest, and the guest's last `buf_alloc` and `fwd_cnt`, modulo 2^32.
    sent: u32,
    guest_alloc: u32,
    guest_forwarded: u32,
}

impl Connection {
    fn new(ports: Ports, socket: UnixStream, state: State) -> Self {
        Self {
            ports,
            socket,
            state,
            request: state == State::Requested,
            response: state == State::Open,
            credit_update: false,
            credit_request: false,
            shutdown: 0,
            shut: 0,
            guest_shut: 0,
            readable: true,
            hung_up: false,
            buffer: Vec::new(),
            written: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            guest_alloc: 0,
            guest_forwarded: 0,
        }
    }
    /// A connection that a program of the host asks for.
    pub fn requested(ports: Ports, socket: UnixStream) -> Self {
        Self::new(ports, socket, State::Requested)
    }
    /// A connection that the guest asked for by `request`.
    pub fn accepted(ports: Ports, socket: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(ports, socket, State::Open);
        connection.guest_alloc = request.buf_alloc.get();
        connection.guest_forwarded = request.fwd_cnt.get();
        connection
    }

    /// The descriptor to poll, and the events.
    pub fn watch(&self) -> (RawFd, libc::c_short) {
        let read = if self.wants_bytes() && !self.readable && self.room() > 0 { libc::POLLIN } else { 0 };
        let write = if self.waiting().is_empty() { 0 } else { libc::POLLOUT };
        let fd = if self.hung_up || self.state == State::Over { -1 } else { self.socket.as_raw_fd() };
        (fd, read | write)
    }
    /// Handles the result of poll(2).
    pub fn ready(&mut self, revents: libc::c_short) {
        if revents & libc::POLLIN != 0 {
            self.readable = true;
        }
        if revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
            // The program does not take bytes any more. What it sent before is still read when the guest has room.
            self.hung_up = true;
            self.end_sending();
            self.readable = true;
        }
        self.flush();
    }

    /// The ports of the connection.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Handles a packet from the guest: its header, and the bytes that follow.
    pub fn packet(&mut self, header: &Header, bytes: &[u8]) {
        self.guest_alloc = header.buf_alloc.get();
        self.guest_forwarded = header.fwd_cnt.get();
        self.credit_request &= self.room() == 0;
        match (header.op.get(), self.state) {
            (op::RESPONSE, State::Requested) => self.answered(),
            (op::RW, State::Open) if self.takes(header, bytes) => self.flush(),
            (op::SHUTDOWN, State::Open) => {
                self.guest_shut |= header.flags.get() & (NO_MORE_RECEIVING | NO_MORE_SENDING);
                if self.guest_shut & NO_MORE_RECEIVING != 0 {
                    // A program that sends to the guest gets an error instead of waiting for room for ever. The call
                    // fails if the program has gone.
                    let _ = self.socket.shutdown(std::net::Shutdown::Read);
                }
                self.flush();
            }
            (op::CREDIT_REQUEST, State::Open) => self.credit_update = true,
            (op::CREDIT_UPDATE, State::Open) => {}
            _ => self.state = State::Over,
        }
    }
    /// The guest accepts the connection: tells the host's program its port.
    fn answered(&mut self) {
        self.state = State::Open;
        let greeting = format!("OK {}\n", self.ports.host);
        // These bytes do not come from the guest, so they must not count as passed on.
        self.forwarded = self.forwarded.wrapping_sub(greeting.len() as u32);
        self.told = self.forwarded;
        self.buffer.extend_from_slice(greeting.as_bytes());
        self.flush();
    }
    /// Takes the guest's bytes if all of them are there and fit into the buffer. Returns whether they do.
    fn takes(&mut self, header: &Header, bytes: &[u8]) -> bool {
        let complete = usize::try_from(header.len.get()) == Ok(bytes.len());
        let fits = self.waiting().len().saturating_add(bytes.len()) <= BUFFER;
        if complete && fits && self.guest_shut & NO_MORE_SENDING == 0 {
            self.buffer.drain(..self.written);
            self.written = 0;
            self.buffer.extend_from_slice(bytes);
            return true;
        }
        false
    }
    fn waiting(&self) -> &[u8] {
        self.buffer.get(self.written..).unwrap_or_default()
    }

    /// Passes bytes to the socket, and updates the state of the connection.
    fn flush(&mut self) {
        while !self.waiting().is_empty() {
            match socket::send(self.socket.as_fd(), self.waiting(), socket::NOW) {
                Ok(count) => {
                    self.written += count;
                    self.forwarded = self.forwarded.wrapping_add(count as u32);
                }
                Err(error) if is_for_now(&error) => break,
                Err(_) => self.end_sending(),
            }
        }
        if self.waiting().is_empty() {
            self.buffer.clear();
            self.written = 0;
            if self.guest_shut & NO_MORE_SENDING != 0 {
                // Shows the end of the guest's bytes to the host's program. The call fails if it has gone.
                let _ = self.socket.shutdown(std::net::Shutdown::Write);
            }
            if self.guest_shut == NO_MORE_SENDING | NO_MORE_RECEIVING {
                self.state = State::Over;
            }
        }
        self.credit_update |= self.forwarded.wrapping_sub(self.told) >= WORTH_TELLING;
    }
    /// The host's program does not take bytes any more.
    fn end_sending(&mut self) {
        self.forwarded = self.forwarded.wrapping_add(self.waiting().len() as u32);
        self.buffer.clear();
        self.written = 0;
        self.say_shut(NO_MORE_RECEIVING);
    }
    fn say_shut(&mut self, flags: u32) {
        self.shutdown |= flags & !self.shut;
    }

    /// Whether bytes for the guest are still read from the socket.
    fn wants_bytes(&self) -> bool {
        let closed = (self.shut | self.shutdown) & NO_MORE_SENDING | self.guest_shut & NO_MORE_RECEIVING;
        self.state == State::Open && closed == 0
    }
    /// The number of bytes for which the guest has room.
    fn room(&self) -> usize {
        let held = self.sent.wrapping_sub(self.guest_forwarded);
        usize::try_from(self.guest_alloc.saturating_sub(held)).unwrap_or(0)
    }

    /// The next packet for the guest: returns its header, and puts its bytes into `bytes`. True with the last packet of
    /// this connection.
    pub fn next(&mut self, guest_cid: u64, bytes: &mut [u8]) -> Option<(Header, bool)> {
        let mut header = self.next_control(guest_cid);
        if header.is_none() && self.readable && self.wants_bytes() {
            header = self.next_bytes(guest_cid, bytes);
        }
        let mut header = header?;
        header.buf_alloc = (BUFFER as u32).into();
        header.fwd_cnt = self.forwarded.into();
        self.told = self.forwarded;
        self.credit_update = false;
        Some((header, header.op.get() == op::RST))
    }
    fn next_control(&mut self, guest_cid: u64) -> Option<Header> {
        let op = if self.state == State::Over {
            op::RST
        } else if std::mem::take(&mut self.request) {
            op::REQUEST
        } else if std::mem::take(&mut self.response) {
            op::RESPONSE
        } else if self.state == State::Requested {
            // Nothing is sent before the guest's answer. If the caller has gone, the answer is not waited for.
            if self.shutdown == 0 {
                return None;
            }
            self.state = State::Over;
            op::RST
        } else if self.shutdown != 0 {
            op::SHUTDOWN
        } else if std::mem::take(&mut self.credit_update) {
            op::CREDIT_UPDATE
        } else {
            return None;
        };
        let mut header = Header::to_guest(guest_cid, self.ports, op);
        if op == op::SHUTDOWN {
            self.shut |= std::mem::take(&mut self.shutdown);
            header.flags = self.shut.into();
        }
        Some(header)
    }
    fn next_bytes(&mut self, guest_cid: u64, bytes: &mut [u8]) -> Option<Header> {
        let room = self.room().min(bytes.len());
        if bytes.is_empty() {
            return None;
        }
        if room == 0 {
            // Asked once: the guest's next packet, of whatever kind, is the answer.
            let ask = !std::mem::replace(&mut self.credit_request, true);
            return ask.then(|| Header::to_guest(guest_cid, self.ports, op::CREDIT_REQUEST));
        }
        match (&self.socket).read(bytes.get_mut(..room)?) {
            Ok(0) => {
                self.say_shut(NO_MORE_SENDING);
                self.next_control(guest_cid)
            }
            Ok(count) => {
                let count = count as u32;
                self.sent = self.sent.wrapping_add(count);
                let mut header = Header::to_guest(guest_cid, self.ports, op::RW);
                header.len = count.into();
                Some(header)
            }
            Err(error) => {
                self.readable = false;
                if !is_for_now(&error) {
                    self.state = State::Over;
                }
                self.next_control(guest_cid)
            }
        }
    }
}

fn is_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
