//! State that a device shares with its workers and its transport: the configuration space, and whether it needs a
//! reset.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::stop_log::Stops;
use super::violation::Offence;

/// Bytes of a configuration space at most.
pub const MAX_CONFIG: usize = paravane_abi::virtio::VIRTIO_MAX_CONFIG;

/// Interrupts the driver; implemented by the transport. Called from any thread; must not wait.
pub trait Interrupt: Send + Sync {
    /// Buffers of this queue have been used.
    fn queue(&self, queue: u16);
    /// The configuration or the status has changed, or a reset is complete.
    fn config(&self);
}

/// The configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; MAX_CONFIG],
    len: usize,
}

impl ConfigSpace {
    fn new(bytes: &[u8]) -> Self {
        let mut space = Self { bytes: [0; MAX_CONFIG], len: bytes.len().min(MAX_CONFIG) };
        space.bytes.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        space
    }
    /// The bytes in use.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
    /// All bytes, with zeroes after those in use.
    pub fn padded(&self) -> [u8; MAX_CONFIG] {
        self.bytes
    }
}

/// The connection between a device and its transport.
pub struct Link {
    config: Mutex<ConfigSpace>,
    /// Number of changes of the configuration, modulo 2^32.
    generation: AtomicU32,
    broken: AtomicBool,
    stops: Stops,
    interrupt: Arc<dyn Interrupt>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("config", &self.config)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// A link with `config` as the initial configuration space.
    pub fn new(config: &[u8], interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            config: Mutex::new(ConfigSpace::new(config)),
            generation: AtomicU32::new(0),
            broken: AtomicBool::new(false),
            stops: Stops::default(),
            interrupt,
        }
    }

    /// The configuration space and its generation, consistent with each other.
    pub fn config(&self) -> (ConfigSpace, u32) {
        let config = self.lock();
        (*config, self.generation.load(Ordering::Acquire))
    }

    /// Changes the configuration space and notifies the driver.
    pub fn change_config(&self, change: impl FnOnce(&mut [u8])) {
        let mut config = self.lock();
        let len = config.len;
        change(config.bytes.get_mut(..len).unwrap_or_default());
        self.generation.fetch_add(1, Ordering::AcqRel);
        drop(config);
        self.interrupt.config();
    }

    /// Interrupts the driver for used buffers of a queue.
    pub fn interrupt(&self, queue: u16) {
        self.interrupt.queue(queue);
    }

    /// Whether the device has stopped because of a violation, and needs a reset.
    pub fn needs_reset(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The last violation by a driver, if any.
    pub fn last_offence(&self) -> Option<Offence> {
        self.stops.last()
    }

    /// Stops the device because of a violation. Further violations that its workers find before a reset are ignored.
    pub fn break_down(&self, offence: Offence) {
        let is_first = || !self.broken.swap(true, Ordering::AcqRel);
        let Some(recorded) = self.stops.record(offence, is_first) else { return };
        self.interrupt.config();
        self.stops.tell(offence, recorded);
    }
    pub(super) fn stops(&self) -> &Stops {
        &self.stops
    }
    /// Called after a reset.
    pub(super) fn mend(&self) {
        self.broken.store(false, Ordering::Release);
    }
    /// The last worker has ended.
    pub(super) fn workers_ended(&self) {
        self.interrupt.config();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
