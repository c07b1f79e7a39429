//! The console device (virtio 1.2, section 5.3) with one port: text between a guest and a [`Backend`].
//!
//! `transmit.rs` and `receive.rs` serve the two queues, `emergency.rs` the register `emerg_wr`. Files, sockets and
//! terminals are in [`crate::backend::console`].
//!
//! One thread serves both queues and the back end, and sleeps in poll(2) when there is nothing to do. Writes to
//! `emerg_wr` come on a vCPU's thread.
//!
//! A slow back end delays the transmit queue only. Output to a back end that has gone is lost. Only malformed rings and
//! requests stop the device.

mod emergency;
mod receive;
mod transmit;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::{Activation, Broken, Device, Info, Link, Queue, Stop, Workers};
use crate::backend::console::backend::{Backend, Size, Wish, watch};
use crate::host::poll::poll;
use emergency::Emergency;
use receive::Receiver;
use transmit::Transmitter;

/// `VIRTIO_CONSOLE_F_SIZE` and `VIRTIO_CONSOLE_F_EMERG_WRITE` (section 5.3.3).
const F_SIZE: u64 = 1 << 0;
const F_EMERG_WRITE: u64 = 1 << 2;
const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = 1;
/// The most rounds of output after a stop was asked for, so that a driver that goes on printing does not prevent it.
const LAST_ROUNDS: usize = 64;
/// The configuration space (section 5.3.4): `cols`, `rows`, `max_nr_ports`, `emerg_wr`.
const CONFIG_LEN: usize = 12;
const EMERGENCY_OFFSET: usize = 8;

/// A console device.
pub struct Console {
    /// Locked by the worker while the device is active.
    backend: Arc<Mutex<Box<dyn Backend>>>,
    emergency: Arc<Emergency>,
    size: Option<Size>,
}

impl Console {
    /// A device that is connected to `backend`.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(backend: Box<dyn Backend>) -> io::Result<Self> {
        let size = backend.size();
        Ok(Self { backend: Arc::new(Mutex::new(backend)), emergency: Arc::new(Emergency::new()?), size })
    }
}

fn put_size(config: &mut [u8], size: Size) {
    let [columns, rows] = [size.columns, size.rows].map(u16::to_le_bytes);
    config.iter_mut().zip([columns, rows].as_flattened()).for_each(|(to, from)| *to = *from);
}

impl Device for Console {
    fn info(&self) -> Info {
        let features = F_EMERG_WRITE | if self.size.is_some() { F_SIZE } else { 0 };
        Info { kind: VIRTIO_ID_CONSOLE, features, queues: 2, queue_size: 128 }
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; CONFIG_LEN];
        if let Some(size) = self.size {
            put_size(&mut config, size);
        }
        config
    }

    /// Handles `emerg_wr`: the character is its low byte, which is the first one. It may be written before the device
    /// is active.
    fn write_config(&mut self, _: &Link, offset: usize, bytes: &[u8]) {
        let byte = EMERGENCY_OFFSET.checked_sub(offset).and_then(|at| bytes.get(at));
        if let Some(&byte) = byte {
            self.emergency.push(byte, &self.backend);
        }
    }

    fn activate(&mut self, mut activation: Activation, workers: &mut Workers) -> io::Result<()> {
        let (backend, emergency) = (Arc::clone(&self.backend), Arc::clone(&self.emergency));
        let (receive, transmit) = (activation.queue(RECEIVE_QUEUE), activation.queue(TRANSMIT_QUEUE));
        let Activation { memory, link, .. } = activation;
        workers.spawn("pv-console", move |stop| {
            // Only an emergency write can hold it, and not for long: earlier workers have ended.
            let mut held = backend.lock().unwrap_or_else(PoisonError::into_inner);
            let receiver = receive.map(|queue| Receiver::new(queue, &memory));
            let transmitter = transmit.map(|queue| Transmitter::new(queue, &memory));
            let worker =
                Worker { backend: &mut **held, receiver, transmitter, emergency: &emergency, link: &link };
            let result = worker.serve(stop);
            drop(held);
            emergency.flush(&backend);
            result
        })
    }
}

/// The state of the worker thread.
struct Worker<'m> {
    backend: &'m mut dyn Backend,
    receiver: Option<Receiver<'m>>,
    transmitter: Option<Transmitter<'m>>,
    emergency: &'m Emergency,
    link: &'m Link,
}

impl Worker<'_> {
    fn serve(mut self, stop: &Stop) -> Result<(), Broken> {
        let mut shown = None;
        loop {
            // Output that a guest made before it powered off is still passed on, as far as the back end takes it.
            let last = stop.is_asked();
            // Only these emergency bytes are certain to be later than what is in the ring now.
            let emergencies = self.emergency.len();
            let mut more = false;
            if let Some(transmitter) = &mut self.transmitter {
                more |= transmitter.round(self.backend)?;
                for _ in 0..if last { LAST_ROUNDS } else { 0 } {
                    more = more && transmitter.round(self.backend)?;
                }
            }
            self.emergency.pass_on(self.backend, emergencies);
            if last {
                return Ok(());
            }
            if let Some(receiver) = &mut self.receiver {
                more |= receiver.round(self.backend)?;
            }
            let size = self.backend.size();
            if size != shown {
                shown = size;
                self.show(size);
            }
            if !more {
                self.sleep(stop)?;
            }
        }
    }

    /// Puts the terminal's size into the configuration, if it is not there already.
    fn show(&self, size: Option<Size>) {
        let Some(size) = size else { return };
        let mut wanted = [0; 4];
        put_size(&mut wanted, size);
        let (config, _) = self.link.config();
        if !config.bytes().starts_with(&wanted) {
            self.link.change_config(|config| put_size(config, size));
        }
    }

    /// Waits until there is something to do.
    fn sleep(&mut self, stop: &Stop) -> Result<(), Broken> {
        let stalled = self.transmitter.as_ref().is_some_and(Transmitter::is_stalled);
        let wish = Wish {
            read: self.receiver.as_ref().is_some_and(Receiver::has_room),
            write: stalled || !self.emergency.is_empty(),
        };
        let queues = [self.receiver.as_ref().map(|r| &r.queue), self.transmitter.as_ref().map(|t| &t.queue)];
        // poll(2) ignores negative descriptors.
        let kick = |queue: Option<&Queue>| watch(queue.map_or(-1, Queue::kick_fd), libc::POLLIN);
        let [receive, transmit] = queues.map(kick);
        let [first, second, third] = self.backend.watch(wish);
        let bell = watch(self.emergency.bell_fd(), libc::POLLIN);
        let stop = watch(stop.fd(), libc::POLLIN);
        let mut fds = [first, second, third, bell, stop, receive, transmit];
        poll(&mut fds, -1).map_err(|_| Broken::Bug)?;
        queues.into_iter().flatten().for_each(Queue::take_kick);
        self.emergency.take_bell();
        let [first, second, third, ..] = fds;
        if [first, second, third].iter().any(|fd| fd.revents != 0) {
            self.backend.ready(&[first, second, third]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
