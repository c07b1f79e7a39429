//! Machine memory, a word at a time and fast: for code that executes a guest's loads and stores one by one.
//!
//! [`MachineMemory`] finds the region of each access anew, which costs more than the access. Here its one region is
//! known; every access is bounded by it. Aligned words are accessed as a whole, so that a device's thread never sees
//! half of one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::memory::{BadMachineAddress, MachineMemory, Maddr};

/// A view of machine memory, which it keeps alive.
pub struct Words {
    memory: Arc<MachineMemory>,
    start: *mut u8,
    len: u64,
}

impl Words {
    /// All of `memory`.
    ///
    /// # Errors
    /// When it is not one region: never.
    pub fn new(memory: &Arc<MachineMemory>) -> Result<Self, BadMachineAddress> {
        let bad = BadMachineAddress { addr: 0, len: usize::MAX };
        let len = usize::try_from(memory.len()).map_err(|_| bad)?;
        let slice = memory.inner().get_slice(GuestAddress(0), len).map_err(|_| bad)?;
        let start = slice.ptr_guard_mut().as_ptr();
        Ok(Self { memory: Arc::clone(memory), start, len: memory.len() })
    }

    /// The memory.
    pub fn memory(&self) -> &MachineMemory {
        &self.memory
    }

    /// Where `len` bytes at `addr` are, if all of them are memory.
    #[inline(always)]
    fn place(&self, addr: Maddr, len: u64) -> Option<*mut u8> {
        if addr.0 > self.len.wrapping_sub(len) || len > self.len {
            return None;
        }
        // SAFETY: `addr + len` is at most `self.len`, the length of the mapping that begins at `start` and lives as
        // long as `self.memory`.
        Some(unsafe { self.start.add(addr.0 as usize) })
    }

    /// Reads `SIZE` (1, 2, 4 or 8) bytes, zero-extended; all ones where there is no memory, as on an empty bus.
    #[inline(always)]
    pub fn load<const SIZE: usize>(&self, addr: Maddr) -> u64 {
        let Some(at) = self.place(addr, SIZE as u64) else { return u64::MAX };
        let aligned = at.addr() & (SIZE - 1) == 0;
        // SAFETY: `SIZE` bytes at `at` are mapped for reading for as long as `self` lives (`place`). Other threads
        // access them, too: aligned words are read atomically; of others any mixture of old and new bytes is right, as
        // on the processor, and the value is only data.
        unsafe {
            match SIZE {
                1 => (*at.cast::<std::sync::atomic::AtomicU8>()).load(Ordering::Relaxed).into(),
                2 if aligned => AtomicU16::from_ptr(at.cast()).load(Ordering::Relaxed).into(),
                4 if aligned => AtomicU32::from_ptr(at.cast()).load(Ordering::Relaxed).into(),
                8 if aligned => AtomicU64::from_ptr(at.cast()).load(Ordering::Relaxed),
                2 => at.cast::<u16>().read_unaligned().into(),
                4 => at.cast::<u32>().read_unaligned().into(),
                _ => at.cast::<u64>().read_unaligned(),
            }
        }
    }

    /// Stores the low `SIZE` (1, 2, 4 or 8) bytes of `value`; nowhere where there is no memory.
    #[inline(always)]
    pub fn store<const SIZE: usize>(&self, addr: Maddr, value: u64) {
        let Some(at) = self.place(addr, SIZE as u64) else { return };
        let aligned = at.addr() & (SIZE - 1) == 0;
        // SAFETY: as in `load`; the memory is mapped for writing. Nothing in this process holds a reference to it.
        unsafe {
            match SIZE {
                1 => (*at.cast::<std::sync::atomic::AtomicU8>()).store(value as u8, Ordering::Relaxed),
                2 if aligned => AtomicU16::from_ptr(at.cast()).store(value as u16, Ordering::Relaxed),
                4 if aligned => AtomicU32::from_ptr(at.cast()).store(value as u32, Ordering::Relaxed),
                8 if aligned => AtomicU64::from_ptr(at.cast()).store(value, Ordering::Relaxed),
                2 => at.cast::<u16>().write_unaligned(value as u16),
                4 => at.cast::<u32>().write_unaligned(value as u32),
                _ => at.cast::<u64>().write_unaligned(value),
            }
        }
    }
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Words").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::{Backing, PAGE_SIZE};

    #[test]
    fn words_of_every_size_and_alignment() {
        let memory = Arc::new(MachineMemory::new(1, 1, Backing::Anonymous).unwrap());
        let words = Words::new(&memory).unwrap();
        for at in 0..16u64 {
            words.store::<8>(Maddr(at), 0x1122_3344_5566_7788);
            assert_eq!(memory.read_obj::<u64>(Maddr(at)), Ok(0x1122_3344_5566_7788));
            assert_eq!(words.load::<8>(Maddr(at)), 0x1122_3344_5566_7788);
            assert_eq!(words.load::<4>(Maddr(at)), 0x5566_7788);
            assert_eq!(words.load::<2>(Maddr(at + 1)), 0x6677);
            assert_eq!(words.load::<1>(Maddr(at + 7)), 0x11);
            words.store::<4>(Maddr(at), u64::MAX);
            words.store::<2>(Maddr(at + 4), 0);
            words.store::<1>(Maddr(at + 6), 9);
            assert_eq!(memory.read_obj::<u64>(Maddr(at)), Ok(0x1109_0000_ffff_ffff));
        }
    }

    #[test]
    fn nothing_beyond_the_end() {
        let memory = Arc::new(MachineMemory::new(0, 1, Backing::Anonymous).unwrap());
        let words = Words::new(&memory).unwrap();
        words.store::<8>(Maddr(PAGE_SIZE - 8), u64::MAX);
        for at in [PAGE_SIZE - 7, PAGE_SIZE, u64::MAX - 3, u64::MAX] {
            words.store::<8>(Maddr(at), 0);
            assert_eq!(words.load::<8>(Maddr(at)), u64::MAX);
        }
        assert_eq!(words.load::<8>(Maddr(PAGE_SIZE - 8)), u64::MAX);
    }
}
