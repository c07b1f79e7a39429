//! A client at the other end of the ring, and the replies that it gets.

mod hostile;
mod nodes;
mod ring;
mod transactions;
mod watches;

use std::mem::offset_of;

use paravane_abi::xenstore::*;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::machine::memory::{Backing, MachineMemory, Maddr};

const GUEST: u16 = 1;

/// A server, its ring's page, and what the client has read and not yet looked at.
pub(super) struct Bench {
    memory: MachineMemory,
    pub(super) server: Server,
    inbox: Vec<u8>,
}

/// A message from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    kind: u32,
    req_id: u32,
    payload: Vec<u8>,
}

fn about() -> About {
    About { domain: GUEST, name: "guest".into(), vcpus: 1, memory_kib: 65536, store: (7, 1), console: (4, 2) }
}

impl Bench {
    pub(super) fn new() -> Self {
        let memory = MachineMemory::new(1, 0, Backing::Anonymous).unwrap();
        Self { memory, server: Server::new(Maddr(0), about()), inbox: Vec::new() }
    }

    fn index(&self, field: usize) -> u32 {
        self.memory.read_obj(Maddr(field as u64)).unwrap()
    }

    fn set(&self, field: usize, value: u32) {
        self.memory.write_obj(Maddr(field as u64), &value).unwrap();
    }

    /// Puts bytes into the ring without telling anybody; how many there was room for.
    fn put(&self, bytes: &[u8]) -> usize {
        let prod = self.index(offset_of!(XenstoreDomainInterface, req_prod));
        let cons = self.index(offset_of!(XenstoreDomainInterface, req_cons));
        let room = XENSTORE_RING_SIZE - prod.wrapping_sub(cons) as usize;
        let fits = room.min(bytes.len());
        for (n, byte) in (0..).zip(&bytes[..fits]) {
            let at = prod.wrapping_add(n) as usize % XENSTORE_RING_SIZE;
            self.memory.write_obj(Maddr(at as u64), byte).unwrap();
        }
        self.set(offset_of!(XenstoreDomainInterface, req_prod), prod.wrapping_add(fits as u32));
        fits
    }

    /// Takes what is in the ring out of it, at most `limit` bytes; how many.
    fn take(&mut self, limit: usize) -> usize {
        let prod = self.index(offset_of!(XenstoreDomainInterface, rsp_prod));
        let mut cons = self.index(offset_of!(XenstoreDomainInterface, rsp_cons));
        let count = (prod.wrapping_sub(cons) as usize).min(limit);
        for _ in 0..count {
            let at = offset_of!(XenstoreDomainInterface, rsp) + cons as usize % XENSTORE_RING_SIZE;
            self.inbox.push(self.memory.read_obj(Maddr(at as u64)).unwrap());
            cons = cons.wrapping_add(1);
        }
        self.set(offset_of!(XenstoreDomainInterface, rsp_cons), cons);
        count
    }

    /// Notifies the store; true if it moved anything.
    fn notify(&mut self) -> bool {
        let mut moved = false;
        loop {
            let turn = self.server.turn(&self.memory).unwrap();
            moved |= turn.moved;
            if !turn.more {
                return moved;
            }
        }
    }

    /// The messages that have arrived complete.
    fn messages(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Ok((head, rest)) = XsdSockmsg::read_from_prefix(&self.inbox)
            && let Some(payload) = rest.get(..head.len as usize)
        {
            messages.push(Message { kind: head.kind, req_id: head.req_id, payload: payload.to_vec() });
            self.inbox.drain(..16 + head.len as usize);
        }
        messages
    }

    /// Sends a request and returns all that comes of it.
    fn exchange(&mut self, kind: u32, tx_id: u32, payload: &[u8]) -> Vec<Message> {
        let bytes = message(kind, tx_id, payload);
        let mut sent = 0;
        loop {
            sent += self.put(&bytes[sent..]);
            let moved = self.notify();
            let taken = self.take(usize::MAX);
            if sent == bytes.len() && !moved && taken == 0 {
                return self.messages();
            }
        }
    }

    /// The reply to a request: its payload, or the error's name.
    pub(super) fn ask_in(&mut self, tx_id: u32, kind: u32, payload: &str) -> Result<String, String> {
        let messages = self.exchange(kind, tx_id, payload.as_bytes());
        let reply = messages.into_iter().find(|m| m.kind != XS_WATCH_EVENT).expect("a reply");
        let text = String::from_utf8(reply.payload).unwrap();
        if reply.kind == kind { Ok(text) } else { Err(text.trim_end_matches('\0').to_owned()) }
    }

    pub(super) fn ask(&mut self, kind: u32, payload: &str) -> Result<String, String> {
        self.ask_in(0, kind, payload)
    }

    /// The payloads of the events that a request brings about.
    pub(super) fn events(&mut self, kind: u32, tx_id: u32, payload: &str) -> Vec<String> {
        let messages = self.exchange(kind, tx_id, payload.as_bytes());
        let events = messages.into_iter().filter(|m| m.kind == XS_WATCH_EVENT);
        events.map(|m| String::from_utf8(m.payload).unwrap()).collect()
    }
}

fn message(kind: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let head = XsdSockmsg { kind, req_id: 42, tx_id, len: payload.len() as u32 };
    [head.as_bytes(), payload].concat()
}

fn done() -> Result<String, String> {
    Ok("OK\0".into())
}

fn fails(name: &str) -> Result<String, String> {
    Err(name.into())
}
