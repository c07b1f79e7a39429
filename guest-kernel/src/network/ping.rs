//! Echo requests, one at a time: the next is sent when the last was answered or has timed out.

use alloc::vec;
use core::fmt;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp::{Endpoint, PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress, Ipv4Address};

use super::stack::{Application, Stack, Step};
use crate::console;
use crate::machine::{Current, Machine};
use crate::println;

const SECOND: u64 = 1_000_000_000;
/// How long to wait for an answer.
const PATIENCE: u64 = SECOND;
/// How long to wait for an address.
const ADDRESS_PATIENCE: u64 = 10 * SECOND;
/// Identifies our requests; one ping runs at a time.
const IDENT: u16 = 0x5056;
/// Bytes that each request carries.
const LEN: usize = 56;

/// Requests and their answers.
pub struct Ping {
    socket: SocketHandle,
    target: Ipv4Address,
    count: u16,
    sent: u16,
    received: u16,
    /// When the outstanding request was sent.
    waiting: Option<u64>,
    started: u64,
}

impl Ping {
    pub fn new(sockets: &mut SocketSet<'static>, target: Ipv4Address, count: u16) -> Self {
        let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; 4], vec![0; 512]);
        let socket = sockets.add(Socket::new(buffer(), buffer()));
        let started = Current::clock();
        Self { socket, target, count, sent: 0, received: 0, waiting: None, started }
    }

    /// The data of a request, different for each.
    fn data(number: u16) -> [u8; LEN] {
        core::array::from_fn(|i| (number as u8).wrapping_add(i as u8))
    }

    /// Takes received packets, and reports the answer to the outstanding request.
    fn take_answer(&mut self, socket: &mut Socket<'_>) {
        let expected = self.sent.wrapping_sub(1);
        while let Ok((bytes, from)) = socket.recv() {
            let Ok(packet) = Icmpv4Packet::new_checked(bytes) else { continue };
            let Ok(answer) = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()) else { continue };
            let right = Icmpv4Repr::EchoReply { ident: IDENT, seq_no: expected, data: &Self::data(expected) };
            if answer == right
                && from == IpAddress::Ipv4(self.target)
                && let Some(sent) = self.waiting.take()
            {
                self.received += 1;
                println!("ping: {from}: number {expected} after {} us", (Current::clock() - sent) / 1000);
            }
        }
    }

    fn send(&mut self, socket: &mut Socket<'_>) {
        let data = Self::data(self.sent);
        let request = Icmpv4Repr::EchoRequest { ident: IDENT, seq_no: self.sent, data: &data };
        // There is room, because no other request is outstanding. Without room the request would count as lost.
        if let Ok(bytes) = socket.send(request.buffer_len(), IpAddress::Ipv4(self.target)) {
            request.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
        }
        self.sent += 1;
        self.waiting = Some(Current::clock());
    }
}

impl Application for Ping {
    const OFFER: &'static str = "";

    fn step(&mut self, stack: &mut Stack) -> Step {
        let clock = Current::clock();
        if console::take_interrupt() {
            return Step::Done;
        }
        if stack.address().is_none() {
            let end = self.started + ADDRESS_PATIENCE;
            return if clock < end { Step::Wait(Some(end)) } else { Step::Done };
        }
        let socket = stack.sockets.get_mut::<Socket<'_>>(self.socket);
        if !socket.is_open() {
            // Does not fail: the socket is closed, and the identifier is not 0.
            let _ = socket.bind(Endpoint::Ident(IDENT));
        }
        self.take_answer(socket);
        if let Some(sent) = self.waiting {
            if clock < sent + PATIENCE {
                return Step::Wait(Some(sent + PATIENCE));
            }
            println!("ping: number {}: no answer", self.sent - 1);
            self.waiting = None;
        }
        if self.sent == self.count {
            return Step::Done;
        }
        self.send(socket);
        Step::Again
    }
}

impl fmt::Display for Ping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, sent, received, .. } = self;
        write!(f, "target={target} sent={sent} received={received}")
    }
}
