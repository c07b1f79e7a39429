//! Suppression of notifications: `VIRTIO_F_EVENT_IDX`, and its predecessor (virtio 1.2, sections 2.7.7 and 2.7.10).
//!
//! A driver of `virtio-drivers` asks its transport to notify for each buffer or batch, once the device has asked for
//! any notification since the queue was set up. This module decides, for every transport alike, whether the device
//! asked for *this* notification. It reads the rings, and writes only the index at which the driver wants an
//! interrupt.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use virtio_drivers::PhysAddr;

use super::pool::Pool;

/// Used ring, flags: do not notify (virtio 1.2, section 2.7.10).
const NO_NOTIFY: u16 = 1;

static SENT: AtomicU64 = AtomicU64::new(0);
static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// How many notifications were sent and suppressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kicks {
    /// Notifications that were sent to a device.
    pub sent: u64,
    /// Notifications that the device had not asked for.
    pub suppressed: u64,
}

/// The notifications of all devices since the start.
pub fn kicks() -> Kicks {
    Kicks { sent: SENT.load(Ordering::Relaxed), suppressed: SUPPRESSED.load(Ordering::Relaxed) }
}

/// The two rings of a split queue.
#[derive(Clone, Copy, Debug)]
pub struct Rings {
    /// The available ring: flags, index, entries of 2 bytes, `used_event`.
    driver: NonNull<u8>,
    /// The used ring: flags, index, entries of 8 bytes, `avail_event`.
    device: NonNull<u8>,
    size: u16,
    event_idx: bool,
    /// The available index at the last decision.
    decided: u16,
}

impl Rings {
    /// The rings at these device addresses of `pool`; `None` if they do not lie in the pool. `event_idx`: whether
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    ///
    /// Buffers that are available now need no notification: a device checks its queues when it starts.
    pub fn new(
        pool: &'static Pool,
        size: u16,
        driver: PhysAddr,
        device: PhysAddr,
        event_idx: bool,
    ) -> Option<Self> {
        let entries = usize::from(size);
        let driver = pool.at(driver, 6 + 2 * entries).filter(|at| at.cast::<u16>().is_aligned())?;
        let device = pool.at(device, 6 + 8 * entries).filter(|at| at.cast::<u32>().is_aligned())?;
        let mut rings = Self { driver, device, size, event_idx, decided: 0 };
        rings.decided = rings.available().load(Ordering::Relaxed);
        Some(rings)
    }

    /// Whether the device wants a notification for the buffers made available since the last call.
    pub fn wants_kick(&mut self) -> bool {
        // The published index must be visible before the device's request is read (section 2.7.13.4.1).
        fence(Ordering::SeqCst);
        let new = self.available().load(Ordering::Relaxed);
        let old = core::mem::replace(&mut self.decided, new);
        let wanted = if self.event_idx {
            let event = self.field(self.device, 4 + 8 * usize::from(self.size)).load(Ordering::Acquire);
            crossed(event, new, old)
        } else {
            new != old && self.field(self.device, 0).load(Ordering::Acquire) & NO_NOTIFY == 0
        };
        let counter = if wanted { &SENT } else { &SUPPRESSED };
        counter.fetch_add(1, Ordering::Relaxed);
        wanted
    }

    /// Requests an interrupt when the device has used `more` buffers beyond the `taken` that the driver has taken
    /// back. False if that many are used already: then no interrupt will come.
    ///
    /// Without `VIRTIO_F_EVENT_IDX` there is no such request, and the device decides when to interrupt.
    pub fn interrupt_after(&self, more: u16, taken: u16) -> bool {
        let target = taken.wrapping_add(more.saturating_sub(1));
        if self.event_idx {
            self.field(self.driver, 4 + 2 * usize::from(self.size)).store(target, Ordering::Release);
        }
        fence(Ordering::SeqCst);
        let used = self.field(self.device, 2).load(Ordering::Acquire);
        used.wrapping_sub(taken) < more
    }

    /// How many buffers the device has used, modulo 2^16.
    pub fn used(&self) -> u16 {
        self.field(self.device, 2).load(Ordering::Acquire)
    }

    fn available(&self) -> &AtomicU16 {
        self.field(self.driver, 2)
    }

    /// A field of a ring; `offset` is even and below the ring's length.
    fn field(&self, ring: NonNull<u8>, offset: usize) -> &AtomicU16 {
        // SAFETY: in bounds by the checks of `new`, aligned because the ring is; the pool lives as long as the kernel.
        unsafe { ring.add(offset).cast::<AtomicU16>().as_ref() }
    }
}

/// Whether an index that moved from `old` to `new` has moved past `event` (section 2.7.10.1).
fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::crossed;

    /// The definition step by step: one of the steps from `old` to `new` passes the device's index.
    fn spelled_out(event: u16, new: u16, old: u16) -> bool {
        let steps = new.wrapping_sub(old);
        (0..steps).any(|step| old.wrapping_add(step) == event)
    }

    #[test]
    fn a_kick_is_wanted_where_the_index_passes_the_event() {
        for old in [0u16, 1, 100, u16::MAX - 3, u16::MAX] {
            for steps in [0u16, 1, 2, 32, 300] {
                let new = old.wrapping_add(steps);
                for delta in [0u16, 1, 2, 31, 32, 33, 299, 300, 301, 40_000, u16::MAX] {
                    let event = old.wrapping_add(delta);
                    assert_eq!(crossed(event, new, old), spelled_out(event, new, old), "{event} {new} {old}");
                }
            }
        }
    }
}
