//! Stream sockets between this guest and programs of the host: an echo service, and connections to the host.
//!
//! Flow control works in both directions (virtio 1.2, section 5.10.6.3): neither side sends more than the other has
//! announced room for. Each direction is shut down by itself (section 5.10.6.6): the side that has no more to send
//! says so, and the other side's reset ends the connection.
#![forbid(unsafe_code)]

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::device::vsock::{Header, MAX_DATA, Vsock, op};
use crate::device::{self, DeviceError};
use crate::kernel::Kernel;
use crate::machine::{Current, Machine};
use crate::{console, println};

/// The port of the echo service, as in TCP (RFC 862).
const ECHO_PORT: u32 = 7;
/// The local port of connections to the host.
const CALLER_PORT: u32 = 1024;
/// Bytes that a connection buffers for us.
const BUFFER: u32 = 16 << 10;
/// In a shutdown: the sender receives no more, sends no more.
const NO_MORE_RECEIVING: u32 = 1;
const NO_MORE_SENDING: u32 = 2;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Received bytes are sent back.
    Echo,
    /// Received bytes are printed.
    Call,
}

struct Connection {
    purpose: Purpose,
    host_port: u32,
    our_port: u32,
    open: bool,
    /// The bytes to send.
    out: VecDeque<u8>,
    /// The size of the host's buffer, how many bytes have left it, and how many we have sent: the counts modulo 2^32.
    host_alloc: u32,
    host_forwarded: u32,
    sent: u32,
    /// How many bytes have left our buffer, and the count that the host was told last.
    forwarded: u32,
    told: u32,
    /// The host sends no more.
    host_is_done: bool,
    /// Shutdown flags that were sent to the host.
    shut: u32,
}

/// All connections, and the packets that belong to none.
struct Sockets {
    connections: Vec<Connection>,
    replies: VecDeque<Header>,
    /// How a connection to the host ended.
    called: Option<&'static str>,
}

/// Serves the echo port until Ctrl-C is typed.
pub fn echo(kernel: &mut Kernel) {
    let sockets = Sockets { connections: Vec::new(), replies: VecDeque::new(), called: None };
    match run(kernel, sockets, |vsock| println!("vsock: address {}, echo on port {ECHO_PORT}", vsock.cid())) {
        Ok(_) => println!("vsock: done"),
        Err(error) => report(error),
    }
}

/// Connects to a port of the host, sends a word and a line feed, and prints the answer until the host sends no more.
pub fn call(kernel: &mut Kernel, port: u32, word: &str) {
    let mut connection = Connection::new(Purpose::Call, port, CALLER_PORT);
    connection.out.extend(word.bytes().chain([b'\n']));
    let request = connection.header(op::REQUEST);
    let (connections, replies) = (alloc::vec![connection], VecDeque::from([request]));
    match run(kernel, Sockets { connections, replies, called: None }, |_| ()) {
        Ok(sockets) => println!("vsock: {}", sockets.called.unwrap_or("interrupted")),
        Err(error) => report(error),
    }
}

fn report(error: DeviceError) {
    match error {
        DeviceError::Absent => {
            println!(
                "no socket device; start the guest with one: `paravane run --vsock cid=3,socket=/tmp/v`"
            );
        }
        error => println!("vsock: {error}"),
    }
}

fn run(
    kernel: &mut Kernel,
    mut sockets: Sockets,
    started: impl FnOnce(&Vsock),
) -> Result<Sockets, DeviceError> {
    let transport = device::find(kernel, Vsock::KIND)?;
    device::without_interrupts(|| {
        let mut vsock = Vsock::new(transport)?;
        started(&vsock);
        while sockets.called.is_none() && !console::take_interrupt() {
            while let Some((header, bytes)) = vsock.receive(|header, bytes| (*header, bytes.to_vec()))? {
                sockets.packet(&header, &bytes);
            }
            sockets.send_all(&mut vsock)?;
            vsock.tell();
            if sockets.called.is_none() && vsock.is_idle() && !console::receive() {
                Current::wait();
            }
        }
        vsock.drain()?;
        Ok(sockets)
    })
}

impl Connection {
    fn new(purpose: Purpose, host_port: u32, our_port: u32) -> Self {
        Self {
            purpose,
            host_port,
            our_port,
            open: false,
            out: VecDeque::new(),
            host_alloc: 0,
            host_forwarded: 0,
            sent: 0,
            forwarded: 0,
            told: 0,
            host_is_done: false,
            shut: 0,
        }
    }

    fn header(&self, op: u16) -> Header {
        Header {
            src_port: self.our_port.into(),
            dst_port: self.host_port.into(),
            op: op.into(),
            flags: if op == op::SHUTDOWN { self.shut } else { 0 }.into(),
            buf_alloc: BUFFER.into(),
            fwd_cnt: self.forwarded.into(),
            ..Header::default()
        }
    }

    fn note_credit(&mut self, header: &Header) {
        self.host_alloc = header.buf_alloc.get();
        self.host_forwarded = header.fwd_cnt.get();
    }

    /// Takes received bytes.
    fn take(&mut self, bytes: &[u8]) {
        if self.purpose == Purpose::Echo && self.shut & NO_MORE_SENDING == 0 {
            self.out.extend(bytes);
            return;
        }
        self.forwarded = self.forwarded.wrapping_add(bytes.len() as u32);
        if self.purpose == Purpose::Call {
            let printable = |byte: &u8| matches!(byte, b' '..=b'~' | b'\n');
            let shown: Vec<u8> = bytes.iter().copied().filter(printable).collect();
            Current::console_write(&shown);
        }
    }

    /// Discards the bytes to send: the host receives no more.
    fn drop_out(&mut self) {
        if self.purpose == Purpose::Echo {
            self.forwarded = self.forwarded.wrapping_add(self.out.len() as u32);
        }
        self.out.clear();
        self.shut |= NO_MORE_SENDING;
    }

    /// The next packet to send, and its bytes.
    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        if !self.open {
            return None;
        }
        let held = self.sent.wrapping_sub(self.host_forwarded);
        let room = self.host_alloc.saturating_sub(held) as usize;
        let count = self.out.len().min(room).min(MAX_DATA);
        if count != 0 {
            let bytes: Vec<u8> = self.out.drain(..count).collect();
            self.sent = self.sent.wrapping_add(count as u32);
            if self.purpose == Purpose::Echo {
                self.forwarded = self.forwarded.wrapping_add(count as u32);
            }
            return Some(self.say(op::RW, bytes));
        }
        let echoed = self.purpose == Purpose::Echo && self.host_is_done;
        let mut shut = self.shut;
        if self.out.is_empty() && (self.purpose == Purpose::Call || echoed) {
            shut |= NO_MORE_SENDING;
        }
        if self.out.is_empty() && self.host_is_done {
            shut |= NO_MORE_SENDING | NO_MORE_RECEIVING;
        }
        if core::mem::replace(&mut self.shut, shut) != shut {
            return Some(self.say(op::SHUTDOWN, Vec::new()));
        }
        let worth_telling = self.forwarded.wrapping_sub(self.told) >= BUFFER / 4;
        worth_telling.then(|| self.say(op::CREDIT_UPDATE, Vec::new()))
    }

    fn say(&mut self, op: u16, bytes: Vec<u8>) -> (Header, Vec<u8>) {
        self.told = self.forwarded;
        (self.header(op), bytes)
    }
}

impl Sockets {
    /// Handles a packet from the host.
    fn packet(&mut self, header: &Header, bytes: &[u8]) {
        let (host_port, our_port, op) = (header.src_port.get(), header.dst_port.get(), header.op.get());
        let known = self.connections.iter().position(|c| (c.host_port, c.our_port) == (host_port, our_port));
        let Some(index) = known else {
            let mut connection = Connection::new(Purpose::Echo, host_port, our_port);
            if op == op::REQUEST && our_port == ECHO_PORT {
                connection.open = true;
                self.replies.push_back(connection.header(op::RESPONSE));
                connection.note_credit(header);
                self.connections.push(connection);
            } else if op != op::RST {
                self.replies.push_back(connection.header(op::RST));
            }
            return;
        };
        let connection = &mut self.connections[index];
        connection.note_credit(header);
        match op {
            op::RESPONSE if !connection.open => connection.open = true,
            op::RW if connection.open => connection.take(bytes),
            op::SHUTDOWN => {
                let flags = header.flags.get();
                connection.host_is_done |= flags & NO_MORE_SENDING != 0;
                if flags & NO_MORE_RECEIVING != 0 {
                    connection.drop_out();
                }
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => self.replies.push_back(connection.header(op::CREDIT_UPDATE)),
            _ => {
                if op != op::RST {
                    self.replies.push_back(connection.header(op::RST));
                }
                let over = self.connections.swap_remove(index);
                if over.purpose == Purpose::Call {
                    self.called = Some(match (over.open, over.host_is_done) {
                        (false, _) => "refused",
                        (true, true) => "the host has closed the connection",
                        (true, false) => "the host has reset the connection",
                    });
                }
            }
        }
    }

    /// Sends everything that can be sent now.
    fn send_all(&mut self, vsock: &mut Vsock) -> Result<(), DeviceError> {
        while let Some(reply) = self.replies.pop_front() {
            send(vsock, reply, &[])?;
        }
        for connection in &mut self.connections {
            while let Some((header, bytes)) = connection.next() {
                send(vsock, header, &bytes)?;
            }
        }
        Ok(())
    }
}

fn send(vsock: &mut Vsock, header: Header, bytes: &[u8]) -> Result<(), DeviceError> {
    if !vsock.can_send() {
        vsock.drain()?;
    }
    Ok(vsock.send(header, bytes)?)
}
