//! Buffers of equal size in the memory that devices may see.

use core::ptr::NonNull;

use paravane_guest::virtio::POOL;
use paravane_guest::virtio::drivers::PAGE_SIZE;

use super::error::DeviceError;

/// Pages of the pool, divided into slots of equal size.
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
        // SAFETY: in bounds by the assertion, and the pool gave us the pages. A driver that hands a slot to a device
        // does not access it until the device has returned it.
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

    /// A slot, borrowed for as long as a device has it.
    ///
    /// # Safety
    /// While the reference exists, only a device uses the slot.
    pub(super) unsafe fn detached(&self, slot: usize, len: usize) -> &'static mut [u8] {
        assert!(slot < self.count && len <= self.size, "{len} bytes of slot {slot} of {}", self.count);
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr().add(slot * self.size), len) }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the pages that `new` allocated. A driver drops its slots after its transport, which resets the
        // device.
        unsafe { POOL.free(self.start, self.pages) };
    }
}
