//! A device as its transport sees it: negotiation, activation, kicks, reset.

use std::io;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Activation, Device, Info};
use super::link::{Interrupt, Link};
use super::queue::{Queue, QueueSetup};
use super::worker::Workers;
use crate::machine::device_memory::DeviceMemory;

/// Features of rings and transports, which every device offers.
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A device was not activated.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// It is active, or has not finished a reset.
    #[error("the device is active")]
    Busy,
    /// The features are not offered, or need others.
    #[error("features that are not offered, or not without others")]
    Features,
    /// There is no such queue, or its memory is not the device's.
    #[error("queue {0} is malformed, outside the device's memory, or one too many")]
    Queue(usize),
    /// The host has no threads or descriptors left.
    #[error("the host cannot start the device: {0}")]
    Host(#[from] io::Error),
}

/// A device, and its workers while it is active.
pub struct Slot {
    device: Box<dyn Device>,
    info: Info,
    link: Arc<Link>,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    kicks: Vec<Option<EventFd>>,
    workers: Workers,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("info", &self.info).field("active", &self.active).finish_non_exhaustive()
    }
}

impl Slot {
    /// The status of an active device (virtio 1.2, section 2.1).
    pub const ACTIVE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
        | VIRTIO_CONFIG_S_DRIVER
        | VIRTIO_CONFIG_S_FEATURES_OK
        | VIRTIO_CONFIG_S_DRIVER_OK;

    /// An inactive device that interrupts by `interrupt`.
    pub fn new(device: Box<dyn Device>, interrupt: Arc<dyn Interrupt>) -> Self {
        let link = Arc::new(Link::new(&device.config(), interrupt));
        let mut info = device.info();
        info.features |= COMMON_FEATURES;
        Self { device, info, link, active: None }
    }

    /// The device's properties, with all offered features.
    pub fn info(&self) -> &Info {
        &self.info
    }
    /// A name that distinguishes it from others of its kind.
    pub fn label(&self) -> Option<String> {
        self.device.label()
    }
    /// Its configuration, and whether it needs a reset.
    pub fn link(&self) -> &Link {
        &self.link
    }
    /// Whether it is active, or has not finished a reset.
    pub fn is_active(&self) -> bool {
        self.active.is_some()
    }
    /// The device status of an active device, 0 of any other (virtio 1.2, section 2.1).
    pub fn status(&self) -> u32 {
        let broken = if self.link.needs_reset() { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 };
        if self.active.is_some() { Self::ACTIVE | broken } else { 0 }
    }
    /// Whether a driver may accept this set of features.
    pub fn accepts(&self, features: u64) -> bool {
        features & !self.info.features == 0
            && features & 1 << VIRTIO_F_VERSION_1 != 0
            && self.device.accepts(features)
    }
    /// Handles a driver's write to the configuration space; returns false if it is out of bounds.
    pub fn write_config(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let len = self.link.config().0.bytes().len();
        let inside = offset.checked_add(bytes.len()).is_some_and(|end| end <= len);
        if inside {
            self.device.write_config(&self.link, offset, bytes);
        }
        inside
    }

    /// Starts the device. After an error it is inactive as before.
    pub fn activate(
        &mut self,
        memory: &DeviceMemory,
        features: u64,
        setups: &[QueueSetup],
    ) -> Result<(), ActivateError> {
        if self.active.is_some() {
            return Err(ActivateError::Busy);
        }
        if !self.accepts(features) {
            return Err(ActivateError::Features);
        }
        if let Some(extra) = setups.get(usize::from(self.info.queues)..).filter(|extra| !extra.is_empty()) {
            return Err(ActivateError::Queue(setups.len() - extra.len()));
        }
        let (mut kicks, mut queues) = (Vec::new(), Vec::new());
        for (index, setup) in (0u16..).zip(setups) {
            let (kick, queue) = self.queue(index, setup, features, memory)?.unzip();
            kicks.push(kick);
            queues.push(queue);
        }
        queues.resize_with(self.info.queues.into(), || None);
        let mut workers = Workers::new(Arc::clone(&self.link))?;
        let activation =
            Activation { features, queues, memory: memory.clone(), link: Arc::clone(&self.link) };
        if let Err(error) = self.device.activate(activation, &mut workers) {
            drop(workers);
            // A worker that had started may have found a violation.
            self.link.mend();
            return Err(error.into());
        }
        self.active = Some(Active { kicks, workers });
        Ok(())
    }

    fn queue(
        &self,
        index: u16,
        setup: &QueueSetup,
        features: u64,
        memory: &DeviceMemory,
    ) -> Result<Option<(EventFd, Queue)>, ActivateError> {
        if setup.size == 0 {
            return Ok(None);
        }
        let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let ends = (kick.try_clone()?, Arc::clone(&self.link));
        let queue = Queue::new(index, setup, self.info.queue_size, features, memory, ends);
        Ok(Some((kick, queue.ok_or(ActivateError::Queue(index.into()))?)))
    }

    /// Notifies the device that a queue has buffers. Has no effect for a queue that is not used.
    pub fn kick(&self, queue: u16) {
        let kicks = self.active.as_ref().map_or(&[][..], |active| &active.kicks);
        if let Some(Some(kick)) = kicks.get(usize::from(queue)) {
            // An error means that the counter is full, and so readable.
            let _ = kick.write(1);
        }
    }

    /// Resets the device; returns whether that is complete. If not, the device still finishes the requests that it has
    /// taken, and calls [`Interrupt::config`] when the caller should try again.
    pub fn reset(&mut self) -> bool {
        if let Some(active) = &self.active {
            active.workers.stop();
            if !active.workers.have_ended() {
                return false;
            }
            self.active = None;
        }
        self.device.reset(&self.link);
        self.link.mend();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::testing::virtio::{Bench, Interrupts, MODERN};
    use crate::virtio::Broken;
    use crate::virtio::slot::*;

    /// A device whose first worker reports a violation at once, and whose second cannot be started while `fails`.
    struct HalfStarted {
        fails: Arc<AtomicBool>,
        interrupts: Arc<Interrupts>,
    }

    impl Device for HalfStarted {
        fn info(&self) -> Info {
            Info { kind: 4, features: 0, queues: 1, queue_size: 8 }
        }
        fn activate(&mut self, activation: Activation, workers: &mut Workers) -> io::Result<()> {
            if !self.fails.load(Ordering::Relaxed) {
                return Ok(());
            }
            workers.spawn("first", |_| Err(Broken::Order))?;
            self.interrupts.wait_until(|| activation.link.needs_reset());
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    #[test]
    fn a_device_that_could_not_be_started_is_as_before() {
        let (fails, interrupts) = (Arc::new(AtomicBool::new(true)), Arc::new(Interrupts::default()));
        let bench = Bench::new(crate::virtio::entropy::Entropy);
        let device = HalfStarted { fails: Arc::clone(&fails), interrupts: Arc::clone(&interrupts) };
        let mut slot = Slot::new(Box::new(device), interrupts);
        assert!(matches!(slot.activate(&bench.memory, MODERN, &[]), Err(ActivateError::Host(_))));
        assert_eq!((slot.status(), slot.link().needs_reset()), (0, false));
        fails.store(false, Ordering::Relaxed);
        slot.activate(&bench.memory, MODERN, &[]).unwrap();
        assert_eq!(slot.status(), 0xf);
    }
}
