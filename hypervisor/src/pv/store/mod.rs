//! The xenstore that a domain speaks to: a small tree of its own, answered within the hypervisor.
//!
//! ```text
//! ring -> wire (bytes become a request) -> request -> ops -> node
//!                                             |
//! ring <- bytes that wait <- wire <- reply, and watch <- changes
//! ```
//!
//! Everything here is done on the vCPU's thread, when the guest notifies the store's port, and nothing exists before it
//! does so for the first time. The rules:
//!
//! * **Bytes are taken at once.** Clients send a message in parts and notify only for the first of them.
//! * **Work is in small turns.** A [turn](Server::turn) handles one request or tells watches of one change; the
//!   caller stops when enough was done, and has the guest ask again.
//! * **Memory is bounded.** Nodes, watches and transactions have limits (xenstored's). While `BACKLOG` bytes wait for
//!   the guest to take replies, no request is taken: the guest that does not read waits for itself.
//! * **A broken client is left alone.** After an index outside the ring, or a message that is too long, the page
//!   names the error and nothing more is answered, as by xenstored.
//!
//! Sources: docs/misc/xenstore.txt, docs/misc/xenstore-ring.txt, public/io/xs_wire.h. What may not be done here:
//! knowing an engine, a hypercall, or any memory of the guest's but the ring's page.

mod keys;
mod node;
mod ops;
mod path;
mod perms;
mod request;
mod ring;
mod state;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

use std::collections::VecDeque;

use paravane_abi::xenstore::{
    XENSTORE_ERROR_PROTO, XENSTORE_ERROR_RINGIDX, XENSTORE_RING_SIZE, XS_WATCH_EVENT, XsdSockmsg,
};

pub use keys::About;
use node::Change;
use request::{Answered, Store};
use ring::{Ring, RingError};
pub use state::StoreState;
use wire::{Assembler, Request};

use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr};

/// Bytes that wait for the guest before no more requests are taken.
const BACKLOG: usize = 16 << 10;

/// The store and its end of the ring.
#[derive(Debug)]
pub struct Server {
    ring: Ring,
    incoming: Assembler,
    /// What there is no room for in the ring: at most [`BACKLOG`] and one message's bytes.
    outgoing: VecDeque<u8>,
    /// Changes that watches have not been notified of yet; the first in part, up to watch `told`.
    changes: VecDeque<Change>,
    told: usize,
    store: Store,
    /// The client broke the protocol.
    broken: bool,
}

/// What a turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Bytes were moved: the guest is to be notified.
    pub moved: bool,
    /// How many elementary operations it took.
    pub cost: u64,
    /// There is more to do.
    pub more: bool,
}

impl Server {
    /// A store for a domain whose ring is the page at `ring`.
    pub fn new(ring: Maddr, about: About) -> Self {
        Self {
            ring: Ring(ring),
            incoming: Assembler::default(),
            outgoing: VecDeque::new(),
            changes: VecDeque::new(),
            told: 0,
            store: Store::new(about),
            broken: false,
        }
    }

    /// Hands out what waits, then does one thing: tells watches of a change, or takes bytes and handles the request
    /// that they complete.
    ///
    /// # Errors
    /// When the ring's page is not there.
    pub fn turn(&mut self, memory: &MachineMemory) -> Result<Turn, BadMachineAddress> {
        if self.broken {
            return Ok(Turn::default());
        }
        match self.try_turn(memory) {
            Ok(turn) => Ok(turn),
            Err(Broken::Ring(RingError::Memory(e))) => Err(e),
            Err(Broken::Ring(RingError::Index)) => self.give_up(memory, XENSTORE_ERROR_RINGIDX),
            Err(Broken::Message(_)) => self.give_up(memory, XENSTORE_ERROR_PROTO),
        }
    }

    fn give_up(&mut self, memory: &MachineMemory, error: u32) -> Result<Turn, BadMachineAddress> {
        self.broken = true;
        self.ring.report(memory, error)?;
        Ok(Turn { moved: true, cost: 1, more: false })
    }

    fn try_turn(&mut self, memory: &MachineMemory) -> Result<Turn, Broken> {
        let mut turn = Turn { moved: self.hand_out(memory)?, cost: 1, more: false };
        if self.outgoing.len() >= BACKLOG {
            return Ok(turn);
        }
        if !self.changes.is_empty() {
            turn.cost += self.tell();
            turn.more = true;
            return Ok(turn);
        }
        let mut bytes = [0; XENSTORE_RING_SIZE];
        let wanted = self.incoming.wants().min(XENSTORE_RING_SIZE);
        let taken = self.ring.take(memory, bytes.get_mut(..wanted).unwrap_or_default())?;
        if taken == 0 {
            return Ok(turn);
        }
        (turn.moved, turn.more) = (true, true);
        if let Some(request) = self.incoming.add(bytes.get(..taken).unwrap_or_default())? {
            turn.cost += self.answer(&request);
        }
        Ok(turn)
    }

    /// Moves what waits into the ring, as far as there is room; true if anything was moved.
    fn hand_out(&mut self, memory: &MachineMemory) -> Result<bool, RingError> {
        let mut moved = false;
        while !self.outgoing.is_empty() {
            let count = self.ring.put(memory, self.outgoing.as_slices().0)?;
            if count == 0 {
                break;
            }
            self.outgoing.drain(..count);
            moved = true;
        }
        Ok(moved)
    }

    /// Handles a request; returns its cost.
    fn answer(&mut self, request: &Request) -> u64 {
        let Answered { reply, first_event, changes, cost } = self.store.handle(request);
        let head = &request.head;
        match reply {
            Ok(payload) => wire::reply(&mut self.outgoing, head, head.kind, &payload),
            Err(errno) => wire::error(&mut self.outgoing, head, errno),
        }
        if let Some(payload) = first_event {
            self.send_event(&payload);
        }
        self.changes.extend(changes);
        cost
    }

    /// Tells watches of the first change that waits, until all have heard of it or enough bytes wait; returns the cost.
    fn tell(&mut self) -> u64 {
        let Some(change) = self.changes.front().cloned() else { return 0 };
        let before = self.told;
        while self.told < self.store.watches.len() && self.outgoing.len() < BACKLOG {
            if let Some(payload) = self.store.watches.event(self.told, &change) {
                self.send_event(&payload);
            }
            self.told += 1;
        }
        let cost = (self.told - before) as u64;
        if self.told >= self.store.watches.len() {
            self.changes.pop_front();
            self.told = 0;
        }
        cost
    }

    fn send_event(&mut self, payload: &[u8]) {
        wire::reply(&mut self.outgoing, &XsdSockmsg::default(), XS_WATCH_EVENT, payload);
    }
}

/// Why a client is left alone.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Message(#[from] wire::TooLong),
}
