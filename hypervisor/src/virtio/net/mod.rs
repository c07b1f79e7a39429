//! The network device (virtio 1.2, section 5.1): one pair of queues between a guest and a [`Backend`].
//!
//! `transmit.rs` and `receive.rs` serve the two queues. Networks are in [`crate::backend::net`].
//!
//! One thread serves both queues and the back end, and sleeps in poll(2) when there is nothing to do. It works in
//! rounds of limited length, so that a flood in one direction neither starves the other nor delays a stop.
//!
//! When the back end has gone, the link is down (`VIRTIO_NET_S_LINK_UP`), the configuration interrupt is raised, and
//! frames are lost. Only malformed rings and requests stop the device.

mod feature;
mod receive;
mod transmit;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use super::{Activation, Broken, Device, Info, Link, Queue, Segment, Stop, Workers};
use crate::backend::net::backend::Backend;
use crate::backend::net::header::{has, offload};
use crate::backend::net::mac::Mac;
use crate::backend::net::scatter_list::AddError;
use crate::host::busy_poll::BusyPoll;
use crate::host::poll::poll;
use receive::Receiver;
use transmit::Transmitter;

/// The most frames of one queue in one round.
const BATCH: usize = 64;
const _: () = assert!(BATCH.is_multiple_of(transmit::TOGETHER));
/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u16 = 1;
/// Offset of `status` in the configuration space.
const STATUS_OFFSET: usize = 6;
const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = 1;

impl From<AddError> for Broken {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Outside(Segment { address, len }) => Self::Address { address, len: len.into() },
            AddError::TooMany => Self::Request("a frame in too many buffers"),
        }
    }
}

/// A network device.
pub struct Net {
    /// Locked by the worker while the device is active.
    backend: Arc<Mutex<Box<dyn Backend>>>,
    mac: Mac,
    features: u64,
    up: bool,
}

impl Net {
    /// A device that is connected to `backend`. Its driver uses the address `mac`.
    pub fn new(backend: Box<dyn Backend>, mac: Mac) -> Self {
        let own = 1 << feature::MAC | 1 << feature::STATUS | 1 << feature::MRG_RXBUF;
        let (features, up) = (own | backend.features(), backend.is_up());
        Self { backend: Arc::new(Mutex::new(backend)), mac, features, up }
    }
    /// The address that the driver uses.
    pub fn mac(&self) -> Mac {
        self.mac
    }
}

impl Device for Net {
    fn info(&self) -> Info {
        Info { kind: VIRTIO_ID_NET, features: self.features, queues: 2, queue_size: 256 }
    }

    fn config(&self) -> Vec<u8> {
        let status = if self.up { LINK_UP } else { 0 };
        [&self.mac.0[..], &status.to_le_bytes()].concat()
    }

    /// Section 5.1.3.1: segmentation needs checksums.
    fn accepts(&self, features: u64) -> bool {
        let needs = [
            (offload::GUEST_TSO4, offload::GUEST_CSUM),
            (offload::GUEST_TSO6, offload::GUEST_CSUM),
            (offload::HOST_TSO4, offload::CSUM),
            (offload::HOST_TSO6, offload::CSUM),
        ];
        needs.iter().all(|&(feature, needed)| !has(features, feature) || has(features, needed))
    }

    fn activate(&mut self, mut activation: Activation, workers: &mut Workers) -> io::Result<()> {
        let (backend, features) = (Arc::clone(&self.backend), activation.features);
        let (receive, transmit) = (activation.queue(RECEIVE_QUEUE), activation.queue(TRANSMIT_QUEUE));
        let Activation { memory, link, .. } = activation;
        workers.spawn("pv-net", move |stop| {
            // No other thread holds it: the workers of earlier activations have ended.
            let mut backend = backend.lock().unwrap_or_else(PoisonError::into_inner);
            backend.accept(features).map_err(|_| Broken::Offloads)?;
            let receiver = receive.map(|queue| Receiver::new(queue, &memory, features));
            let transmitter = transmit.map(|queue| Transmitter::new(queue, &memory, features));
            Worker { backend: &mut **backend, receiver, transmitter, link: &link }.serve(stop)
        })
    }
}

/// The state of the worker thread.
struct Worker<'m> {
    backend: &'m mut dyn Backend,
    receiver: Option<Receiver<'m>>,
    transmitter: Option<Transmitter<'m>>,
    link: &'m Link,
}

impl Worker<'_> {
    fn serve(mut self, stop: &Stop) -> Result<(), Broken> {
        let mut habit = BusyPoll::default();
        let (config, _) = self.link.config();
        let mut shown = config.bytes().get(STATUS_OFFSET).is_some_and(|status| status & 1 != 0);
        while !stop.is_asked() {
            let mut more = false;
            if let Some(transmitter) = &mut self.transmitter {
                more |= transmitter.round(self.backend, BATCH)?;
            }
            if let Some(receiver) = &mut self.receiver {
                more |= receiver.round(self.backend, BATCH)?;
            }
            let up = self.backend.is_up();
            if up != shown {
                shown = up;
                self.show(up);
            }
            if more {
                continue;
            }
            let mut failed = Ok(());
            let found = habit.look(|| match self.has_work(stop) {
                Ok(found) => found,
                Err(broken) => {
                    failed = Err(broken);
                    true
                }
            });
            failed?;
            if !found {
                if !self.ask_for_kicks()? {
                    self.poll(stop, -1)?;
                }
                habit.slept();
            }
        }
        Ok(())
    }

    /// Whether a queue or the back end has something to do. For busy polling.
    fn has_work(&mut self, stop: &Stop) -> Result<bool, Broken> {
        let queues = self.transmitter.as_ref().is_some_and(Transmitter::has_next)
            || self.receiver.as_ref().is_some_and(Receiver::has_next);
        if queues { Ok(true) } else { self.poll(stop, 0) }
    }

    /// Asks for kicks before the thread sleeps. Returns whether there is something to do already.
    fn ask_for_kicks(&mut self) -> Result<bool, Broken> {
        let mut any = false;
        if let Some(transmitter) = &mut self.transmitter {
            any |= transmitter.ask_for_kicks()?;
        }
        if let Some(receiver) = &mut self.receiver {
            any |= receiver.ask_for_kicks()?;
        }
        Ok(any)
    }

    /// Puts the state of the link into the configuration.
    fn show(&self, up: bool) {
        let status = if up { LINK_UP } else { 0 };
        self.link.change_config(|config| {
            config.iter_mut().skip(STATUS_OFFSET).zip(status.to_le_bytes()).for_each(|(to, from)| *to = from);
        });
    }

    /// Waits at most `time` milliseconds (-1: for ever) for something to do. Returns whether there is.
    fn poll(&mut self, stop: &Stop, time: libc::c_int) -> Result<bool, Broken> {
        let receiving = self.receiver.as_ref().is_some_and(Receiver::has_room);
        let watch = self.backend.watch(receiving);
        let queues = [self.receiver.as_ref().map(|r| &r.queue), self.transmitter.as_ref().map(|t| &t.queue)];
        // poll(2) ignores negative descriptors.
        let kick = |queue: Option<&Queue>| (queue.map_or(-1, Queue::kick_fd), libc::POLLIN);
        let [receive, transmit] = queues.map(kick);
        let behind = watch.map_or((-1, 0), |watch| (watch.fd, watch.events));
        let mut fds = [behind, (stop.fd(), libc::POLLIN), receive, transmit]
            .map(|(fd, events)| libc::pollfd { fd, events, revents: 0 });
        let ready = poll(&mut fds, time).map_err(|_| Broken::Bug)?;
        let [behind, _, receive, transmit] = fds;
        for (queue, fd) in queues.into_iter().zip([receive, transmit]) {
            if fd.revents != 0
                && let Some(queue) = queue
            {
                queue.take_kick();
            }
        }
        if behind.revents != 0 {
            self.backend.ready(behind.revents);
        }
        Ok(ready > 0)
    }
}

#[cfg(test)]
mod tests;
