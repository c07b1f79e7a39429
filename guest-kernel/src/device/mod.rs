//! Virtio devices: the same drivers on either machine.
//!
//! Rings are those of `virtio-drivers`; the machine layer has the transport. Nothing here runs before somebody asks for
//! a device. Drivers work with interrupts off, and let them in to wait.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use paravane_guest::virtio::drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use paravane_guest::virtio::drivers::{Error, PAGE_SIZE};
use paravane_guest::virtio::{Interrupts, POOL};

use crate::kernel::Kernel;
use crate::machine::{Current, Machine};
use crate::memory::{Memory, direct_map};

pub mod block;
pub mod console;
pub mod entropy;
pub mod net;
mod queue;
pub mod socket;

pub use queue::Queue;

/// Pages of the memory that devices may see: 4 MiB, taken when the first device is asked for.
const POOL_PAGES: u64 = 1024;

/// How drivers reach their devices.
pub type Transported = <Current as Machine>::Transport;

/// Why there is no working device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The machine has none of this kind.
    Absent,
    /// There is no memory for it.
    OutOfMemory,
    /// The host refused to start it.
    NotStarted,
    /// It stopped: it found what we asked for wrong.
    NeedsReset,
    /// It or its driver failed.
    Failed(Error),
}

impl DeviceError {
    /// In one word, for a result line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Absent => "no-such-device",
            Self::OutOfMemory => "no-memory-for-device",
            Self::NotStarted => "device-not-started",
            Self::NeedsReset => "device-needs-reset",
            Self::Failed(Error::IoError) => "io-error",
            Self::Failed(Error::QueueFull) => "queue-full",
            Self::Failed(Error::Unsupported) => "unsupported",
            Self::Failed(_) => "driver-failed",
        }
    }
}

impl core::fmt::Display for DeviceError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Absent => "there is no such device",
            Self::OutOfMemory => "there is no memory for the device",
            Self::NotStarted => "the host did not start the device",
            Self::NeedsReset => "the device stopped and needs a reset",
            Self::Failed(error) => return write!(f, "{error}"),
        })
    }
}

impl core::error::Error for DeviceError {}

impl From<Error> for DeviceError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Whether [`prepare`] has run, and how many devices there may be.
static PREPARED: crate::single::Single<Option<usize>> = crate::single::Single::new(None);

/// Makes devices reachable and gives them the pool, once; how many there may be.
///
/// # Errors
/// When there is no memory for the pool.
pub fn prepare(kernel: &mut Kernel) -> Result<usize, DeviceError> {
    // SAFETY: one thread, and handlers know nothing of it.
    let prepared = unsafe { PREPARED.get() };
    if let Some(count) = *prepared {
        return Ok(count);
    }
    let count = Current::attach_devices(&mut kernel.memory, kernel.cmdline);
    if count != 0 {
        let first = kernel.memory.frames.allocate_run(POOL_PAGES).ok_or(DeviceError::OutOfMemory)?;
        let window = direct_map(first) as *mut u8;
        // SAFETY: a run of frames that was just allocated, and that the direct map maps.
        let given = unsafe { POOL.give(window, first.0 * PAGE_SIZE as u64, POOL_PAGES as usize) };
        given.map_err(|_| DeviceError::OutOfMemory)?;
    }
    *prepared = Some(count);
    Ok(count)
}

/// The first device of a kind.
///
/// # Errors
/// When there is none.
pub fn find(kernel: &mut Kernel, kind: DeviceType) -> Result<Transported, DeviceError> {
    let count = prepare(kernel)?;
    open(&kernel.memory, count, kind)
}

/// As [`find`], after [`prepare`] said how many devices there may be.
///
/// # Errors
/// As there.
pub fn open(memory: &Memory, count: usize, kind: DeviceType) -> Result<Transported, DeviceError> {
    let found = (0..count).find_map(|number| Current::device(memory, number, kind));
    found.ok_or(DeviceError::Absent)
}

/// Whether [`quietly`] is at work.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Runs `f` with interrupts off, as drivers want it; they are on afterwards, but inside of another such `f`: what one
/// driver does may be printed by another.
pub fn quietly<R>(f: impl FnOnce() -> R) -> R {
    Current::interrupts_off();
    let outermost = !QUIET.swap(true, Ordering::Relaxed);
    let result = f();
    if outermost {
        QUIET.store(false, Ordering::Relaxed);
        Current::interrupts_on();
    }
    result
}

/// For who panics: interrupts stay off for good.
pub fn stay_quiet() {
    QUIET.store(true, Ordering::Relaxed);
    Current::interrupts_off();
}

/// Whether the device that a driver has set up is running.
///
/// # Errors
/// When it is not.
pub fn check_started(transport: &impl Transport) -> Result<(), DeviceError> {
    let running = transport.get_status().contains(DeviceStatus::DRIVER_OK);
    if running { Ok(()) } else { Err(DeviceError::NotStarted) }
}

/// With interrupts off: idles until `more` buffers of a queue are used past `taken`.
///
/// # Errors
/// When the device stopped.
fn wait_used(transport: &mut Transported, queue: u16, more: u16, taken: u16) -> Result<(), DeviceError> {
    while transport.interrupt_after(queue, more, taken) {
        Current::wait();
        if transport.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT)
            && transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET)
        {
            return Err(DeviceError::NeedsReset);
        }
    }
    Ok(())
}

/// Pages of the pool, in slots of equal size.
pub struct Slots {
    start: NonNull<u8>,
    pages: usize,
    size: usize,
    count: usize,
}

impl Slots {
    /// `count` slots of `size` bytes, all zeroes.
    ///
    /// # Errors
    /// When the pool has no room for them.
    pub fn new(count: usize, size: usize) -> Result<Self, DeviceError> {
        let pages = (count * size).div_ceil(PAGE_SIZE);
        let start = POOL.allocate(pages).ok_or(DeviceError::OutOfMemory)?;
        Ok(Self { start, pages, size, count })
    }

    /// A slot.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn get(&self, slot: usize) -> &[u8] {
        assert!(slot < self.count, "slot {slot} of {}", self.count);
        // SAFETY: in bounds by the assertion, and ours; whoever gives a slot to a device takes care that nobody looks.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr().add(slot * self.size), self.size) }
    }

    /// A slot, to be written.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn get_mut(&mut self, slot: usize) -> &mut [u8] {
        assert!(slot < self.count, "slot {slot} of {}", self.count);
        // SAFETY: as in `get`.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr().add(slot * self.size), self.size) }
    }

    /// A slot whose borrow the compiler does not follow.
    ///
    /// # Safety
    /// Until the reference is gone the slot is used by nothing else but a device.
    unsafe fn detached(&self, slot: usize, len: usize) -> &'static mut [u8] {
        assert!(slot < self.count && len <= self.size, "{len} bytes of slot {slot} of {}", self.count);
        // SAFETY: in bounds by the assertion; the rest is the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr().add(slot * self.size), len) }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: what `new` allocated. A driver drops its slots after its transport, which resets the device.
        unsafe { POOL.free(self.start, self.pages) };
    }
}
