//! All connections of a device: which exist, which is served next, and which requests are refused.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::connection::Connection;
use super::packet::{HOST_CID, Header, Ports, STREAM, op};
use crate::backend::vsock;
use crate::backend::vsock::{Call, Caller};

/// The most connections at a time; further ones are refused.
pub(super) const MAX_CONNECTIONS: usize = 128;
/// The most callers that have not named a port yet. A further one replaces the one that has waited longest.
const MAX_CALLERS: usize = 16;
/// The most refusals that the guest has not fetched. No packets are taken from it until it fetches some.
const MAX_REFUSALS: usize = 256;
/// The first port that a program of the host is given: above those that programs choose themselves.
const FIRST_PORT: u32 = 1 << 30;

/// The connections.
pub(super) struct Table<'a> {
    guest_cid: u64,
    path: PathBuf,
    listener: &'a UnixListener,
    connections: Vec<Connection>,
    /// The index of the connection that was served last.
    turn: usize,
    callers: VecDeque<Caller>,
    /// The last caller could not be accepted, for example because no descriptor was left. The next attempt is made when
    /// the guest sends a packet: polling for the same caller would spin.
    deaf: bool,
    refusals: VecDeque<Header>,
    next_port: u32,
}

impl<'a> Table<'a> {
    pub fn new(guest_cid: u64, path: PathBuf, listener: &'a UnixListener) -> Self {
        let (connections, callers) = (Vec::new(), VecDeque::new());
        let (turn, refusals, next_port) = (0, VecDeque::new(), FIRST_PORT);
        Self { guest_cid, path, listener, connections, turn, callers, deaf: false, refusals, next_port }
    }

    /// Whether the guest must fetch packets before it may send more.
    pub fn is_full(&self) -> bool {
        self.refusals.len() >= MAX_REFUSALS
    }

    fn position(&self, ports: Ports) -> Option<usize> {
        self.connections.iter().position(|connection| connection.ports() == ports)
    }

    /// Handles a packet from the guest.
    pub fn packet(&mut self, header: &Header, bytes: &[u8]) {
        self.deaf = false;
        let ports = header.guests_ports();
        let is_right = header.src_cid.get() == self.guest_cid
            && header.dst_cid.get() == HOST_CID
            && header.kind.get() == STREAM;
        let known = if is_right { self.position(ports) } else { None };
        match (header.op.get(), known) {
            (op::RST, Some(index)) => {
                self.connections.remove(index);
            }
            // A reset of an unknown connection needs no answer.
            (op::RST, None) => {}
            (_, Some(index)) => {
                if let Some(connection) = self.connections.get_mut(index) {
                    connection.packet(header, bytes);
                }
            }
            (op::REQUEST, None) if is_right && self.connections.len() < MAX_CONNECTIONS => {
                match vsock::connect(&vsock::path_of_port(&self.path, ports.host)) {
                    Ok(socket) => self.connections.push(Connection::accepted(ports, socket, header)),
                    Err(_) => self.refuse(header),
                }
            }
            _ => self.refuse(header),
        }
    }

    /// Tells the guest that there is no such connection. The answer comes from the packet's destination, so that the
    /// guest can assign it to the packet.
    fn refuse(&mut self, header: &Header) {
        let mut refusal = Header::to_guest(self.guest_cid, header.guests_ports(), op::RST);
        (refusal.src_cid, refusal.kind) = (header.dst_cid, header.kind);
        self.refusals.push_back(refusal);
    }

    /// The next packet for the guest: returns its header, and puts its bytes into `bytes`.
    pub fn next(&mut self, bytes: &mut [u8]) -> Option<Header> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        for _ in 0..self.connections.len() {
            self.turn = (self.turn + 1).checked_rem(self.connections.len()).unwrap_or(0);
            let Some(connection) = self.connections.get_mut(self.turn) else { continue };
            if let Some((header, last)) = connection.next(self.guest_cid, bytes) {
                if last {
                    self.connections.remove(self.turn);
                }
                return Some(header);
            }
        }
        None
    }

    /// Appends the descriptors to poll, in the order that [`Table::ready`] expects.
    pub fn watch(&self, fds: &mut Vec<libc::pollfd>) {
        // poll(2) ignores negative descriptors.
        let listening = if self.deaf { -1 } else { self.listener.as_raw_fd() };
        let listener = [(listening, libc::POLLIN)].into_iter();
        let callers = self.callers.iter().map(|caller| (caller.socket.as_raw_fd(), libc::POLLIN));
        let connections = self.connections.iter().map(Connection::watch);
        let all = listener.chain(callers).chain(connections);
        fds.extend(all.map(|(fd, events)| libc::pollfd { fd, events, revents: 0 }));
    }

    /// Handles the result of poll(2) for the descriptors of [`Table::watch`].
    pub fn ready(&mut self, fds: &[libc::pollfd]) {
        let (listener, rest) = fds.split_at_checked(1).unwrap_or_default();
        let (callers, connections) = rest.split_at_checked(self.callers.len()).unwrap_or_default();
        for (connection, fd) in self.connections.iter_mut().zip(connections).filter(|(_, fd)| fd.revents != 0)
        {
            connection.ready(fd.revents);
        }
        for (index, fd) in callers.iter().enumerate().rev() {
            if fd.revents != 0 {
                self.hear(index);
            }
        }
        if listener.iter().any(|fd| fd.revents != 0) {
            self.admit();
        }
    }

    /// Accepts a caller.
    fn admit(&mut self) {
        match self.listener.accept().and_then(|(socket, _)| Caller::new(socket)) {
            Ok(caller) => {
                if self.callers.len() >= MAX_CALLERS {
                    self.callers.pop_front();
                }
                self.callers.push_back(caller);
            }
            Err(error) => self.deaf = error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Reads what a caller has sent.
    fn hear(&mut self, index: usize) {
        let call = self.callers.get_mut(index).map_or(Call::Incomplete, Caller::listen);
        if call == Call::Incomplete {
            return;
        }
        // A caller whose request is malformed, or one too many, is disconnected; that is the answer.
        let Some(caller) = self.callers.remove(index) else { return };
        if let Call::Port(guest) = call
            && self.connections.len() < MAX_CONNECTIONS
        {
            let ports = Ports { host: self.free_port(guest), guest };
            self.connections.push(Connection::requested(ports, caller.socket));
        }
    }

    /// A port of the host that has no connection with port `guest` of the guest.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_PORT);
            // There are more ports than connections, so this ends.
            if self.position(Ports { host, guest }).is_none() {
                return host;
            }
        }
    }
}
