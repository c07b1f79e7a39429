//! The socket device (virtio 1.2, section 5.10): stream sockets between the guest and programs of the host.
//!
//! | File | What is in it |
//! | --- | --- |
//! | `packet.rs` | the header of each packet |
//! | `connection.rs` | one connection: credit, shutdown, its next packet |
//! | `table.rs` | all connections, and callers that have not named a port yet |
//!
//! The protocol by which programs of the host ask for a port of the guest is in [`crate::backend::vsock`].
//!
//! One thread serves everything and never waits for a single connection. A violation of the protocol by the guest or
//! by a program of the host ends the connection (`VIRTIO_VSOCK_OP_RST`); only a malformed buffer stops the device.
//! The number of connections and the memory of each are limited. A reset of the device ends all connections.

mod connection;
mod packet;
mod table;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use zerocopy::IntoBytes;

use super::{Activation, Broken, Chain, Device, Info, Queue, Stop, Workers};
use crate::backend::unix;
use crate::host::poll::poll;
use crate::machine::device_memory::DeviceMemory;
use connection::BUFFER;
use packet::{HEADER_LEN, Header};
use table::Table;

const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = 1;
/// Receive, transmit and event queue. Events are for migrated guests; there are none.
const QUEUES: u16 = 3;
/// `VIRTIO_VSOCK_F_STREAM`.
const F_STREAM: u64 = 1;
/// The most packets of one queue in one round.
const BATCH: usize = 64;

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    path: PathBuf,
    listener: Arc<UnixListener>,
}

impl Vsock {
    /// A device for a guest with the address `guest_cid`, which listens on the host's socket `path`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn new(guest_cid: u64, path: &Path) -> io::Result<Self> {
        let listener = unix::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { guest_cid, path: path.to_owned(), listener: Arc::new(listener) })
    }
}

impl Device for Vsock {
    fn info(&self) -> Info {
        Info { kind: VIRTIO_ID_VSOCK, features: F_STREAM, queues: QUEUES, queue_size: 128 }
    }

    fn config(&self) -> Vec<u8> {
        self.guest_cid.to_le_bytes().to_vec()
    }

    fn activate(&mut self, mut activation: Activation, workers: &mut Workers) -> io::Result<()> {
        let queues = (activation.queue(RECEIVE_QUEUE), activation.queue(TRANSMIT_QUEUE));
        // Without one of them the device cannot do anything.
        let (Some(receive), Some(transmit)) = queues else { return Ok(()) };
        let (guest_cid, path, listener) = (self.guest_cid, self.path.clone(), Arc::clone(&self.listener));
        workers.spawn("pv-vsock", move |stop| {
            let memory = activation.memory;
            let table = Table::new(guest_cid, path, &listener);
            let (buffer, fds) = (vec![0; BUFFER].into_boxed_slice(), Vec::new());
            Worker { table, receive, transmit, memory, empty: None, buffer, fds }.serve(stop)
        })
    }
}

/// The state of the worker thread.
struct Worker<'a> {
    table: Table<'a>,
    receive: Queue,
    transmit: Queue,
    memory: DeviceMemory,
    /// A buffer of the guest that waits for a packet.
    empty: Option<Chain>,
    /// The bytes of one packet.
    buffer: Box<[u8]>,
    fds: Vec<libc::pollfd>,
}

impl Worker<'_> {
    fn serve(mut self, stop: &Stop) -> Result<(), Broken> {
        while !stop.is_asked() {
            let more = self.take_packets()?;
            if !(self.give_packets()? || more) {
                self.sleep(stop)?;
            }
        }
        Ok(())
    }

    /// Takes packets from the guest, up to a limit. Returns whether there is more to do now.
    fn take_packets(&mut self) -> Result<bool, Broken> {
        self.transmit.refuse_kicks()?;
        let mut more = true;
        for _ in 0..BATCH {
            if self.table.is_full() {
                more = false;
                break;
            }
            let Some(chain) = self.transmit.take()? else {
                more = self.transmit.ask_for_kicks()?;
                break;
            };
            self.packet(&chain)?;
            self.transmit.give_back(chain.head(), 0)?;
        }
        self.transmit.notify()?;
        Ok(more)
    }

    fn packet(&mut self, chain: &Chain) -> Result<(), Broken> {
        if !chain.writable().is_empty() {
            return Err(Broken::Request("a transmitted packet with buffers for the device to write"));
        }
        let mut header = Header::default();
        if self.memory.gather(chain.readable(), 0, header.as_mut_bytes()) < HEADER_LEN {
            return Err(Broken::Request("a transmitted packet without its header"));
        }
        let len = u64::from(header.len.get());
        if len > chain.readable_len() - HEADER_LEN as u64 {
            return Err(Broken::Request(
                "a transmitted packet whose header says that it is longer than its buffers",
            ));
        }
        // More bytes than this exceed every credit. `Table::packet` finds that there are fewer than the header says.
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(BUFFER);
        let bytes = self.buffer.get_mut(..len).unwrap_or_default();
        let got = self.memory.gather(chain.readable(), HEADER_LEN as u64, bytes);
        self.table.packet(&header, bytes.get(..got).unwrap_or_default());
        Ok(())
    }

    /// Gives packets to the guest, up to a limit. Returns whether it got any.
    fn give_packets(&mut self) -> Result<bool, Broken> {
        self.receive.refuse_kicks()?;
        let mut given = false;
        for _ in 0..BATCH {
            if self.empty.is_none() {
                self.empty = self.receive.take()?;
            }
            let Some(chain) = &self.empty else {
                given |= self.receive.ask_for_kicks()?;
                break;
            };
            let room = chain.writable_len().checked_sub(HEADER_LEN as u64);
            let room = room.filter(|_| chain.readable().is_empty());
            let room = room.ok_or(Broken::Request(
                "a receive buffer for the device to read, or too short for a header",
            ))?;
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(BUFFER);
            let bytes = self.buffer.get_mut(..room).unwrap_or_default();
            let Some(header) = self.table.next(bytes) else { break };
            let len = usize::try_from(header.len.get()).map_err(|_| Broken::Bug)?;
            self.memory.scatter(chain.writable(), 0, header.as_bytes());
            self.memory.scatter(chain.writable(), HEADER_LEN as u64, bytes.get(..len).unwrap_or_default());
            let written = u32::try_from(HEADER_LEN + len).map_err(|_| Broken::Bug)?;
            self.receive.give_back(chain.head(), written)?;
            (self.empty, given) = (None, true);
        }
        self.receive.notify()?;
        Ok(given)
    }

    fn sleep(&mut self, stop: &Stop) -> Result<(), Broken> {
        let own = [stop.fd(), self.receive.kick_fd(), self.transmit.kick_fd()];
        self.fds.clear();
        self.fds.extend(own.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }));
        self.table.watch(&mut self.fds);
        poll(&mut self.fds, -1).map_err(|_| Broken::Bug)?;
        self.receive.take_kick();
        self.transmit.take_kick();
        self.table.ready(self.fds.get(own.len()..).unwrap_or_default());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
