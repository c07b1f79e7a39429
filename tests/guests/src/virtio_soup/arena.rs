//! The memory that devices may access.

use core::cell::UnsafeCell;

use paravane_guest::abi::addr::PAGE_SIZE;

/// Places for a queue's areas, of three pages each: descriptors, available ring, used ring.
pub(super) const PLACES: u64 = 16;
const PLACE_PAGES: u64 = 3;
/// Where buffers begin.
pub(super) const BUFFERS: u64 = PLACES * PLACE_PAGES * PAGE_SIZE;
/// Bytes of the arena.
pub(super) const BYTES: u64 = BUFFERS + 48 * PAGE_SIZE;
/// The address by which devices know the arena.
pub(super) const DEVICE_BASE: u64 = 0x10_0000;

#[repr(C, align(4096))]
struct Arena(UnsafeCell<[u8; BYTES as usize]>);

// SAFETY: only volatile accesses are made, by one vCPU and by devices; plain bytes.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([0; BYTES as usize]));

/// The virtual address of the arena.
pub(super) fn address() -> u64 {
    ARENA.0.get().addr() as u64
}

/// Offset of a queue's place.
pub(super) const fn place(n: u64) -> u64 {
    n % PLACES * PLACE_PAGES * PAGE_SIZE
}

/// Writes bytes at an offset. Bytes past the end of the arena are dropped.
pub(super) fn write(at: u64, bytes: &[u8]) {
    for (at, byte) in (at..BYTES).zip(bytes) {
        // SAFETY: `at` is below the arena's length.
        unsafe { ARENA.0.get().cast::<u8>().add(at as usize).write_volatile(*byte) };
    }
}

/// Reads two bytes at an offset that is aligned and within the arena.
pub(super) fn read_u16(at: u64) -> u16 {
    assert!(at < BYTES && at.is_multiple_of(2), "{at:#x} is not in the arena");
    // SAFETY: `at` was checked above.
    unsafe { ARENA.0.get().cast::<u8>().add(at as usize).cast::<u16>().read_volatile() }
}

/// Clears bytes.
pub(super) fn clear(at: u64, len: u64) {
    for page in (at..at + len).step_by(64) {
        write(page, &[0; 64]);
    }
}
