//! The table by which translated code finds the translation of an indirect transfer's target.
//!
//! 4096 keys, then as many addresses. A target may be in one of two places, by two groups of 12 of its bits: with one,
//! two targets that are both in use and share a place would leave for the host each time. A key is the negative of its
//! target, so that the code finds equality by adding.

use crate::machine::memory::{MachineMemory, Maddr, PAGE_SIZE};

/// Places in the table.
pub(super) const ENTRIES: u64 = 4096;
/// Offset of the addresses.
pub(super) const ADDRESSES: u64 = ENTRIES * 8;
/// The key of a place that is free: of a target that does not exist, because no code can be at the last address.
const FREE: u64 = 1;
/// The bits of a target that select its first and its second place.
pub(super) const MASKS: [u64; 2] = [0xfff, 0xfff << 5];

/// The table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Targets {
    at: Maddr,
    /// Whether the processor can take any bits: if not, only a byte selects a place.
    any_bits: bool,
}

impl Targets {
    pub fn new(at: Maddr, any_bits: bool) -> Self {
        Self { at, any_bits }
    }

    /// The places of a target.
    fn places(self, target: u64) -> [u64; 2] {
        if self.any_bits {
            [target & 0xfff, target >> 5 & 0xfff]
        } else {
            [target & 0xff, target >> 8 & 0xff]
        }
    }

    fn key_at(self, place: u64) -> Maddr {
        Maddr(self.at.0 + place * 8)
    }

    fn address_at(self, place: u64) -> Maddr {
        Maddr(self.at.0 + ADDRESSES + place * 8)
    }

    fn key(self, memory: &MachineMemory, place: u64) -> u64 {
        memory.load_u64(self.key_at(place)).unwrap_or(FREE)
    }

    fn put(self, memory: &MachineMemory, place: u64, key: u64, address: u64) {
        // These frames exist: the layout has them. Nothing of the guest runs while this is changed.
        let _ = memory.store_u64(self.address_at(place), address);
        let _ = memory.store_u64(self.key_at(place), key);
    }

    /// Empties it. Whoever is led to a free place by a target that does not exist comes to `nowhere`.
    pub fn clear(self, memory: &MachineMemory, nowhere: u64) {
        for (first, value) in [(self.at.0, FREE), (self.at.0 + ADDRESSES, nowhere)] {
            let mut page = [0u8; PAGE_SIZE as usize];
            for word in page.chunks_exact_mut(8) {
                word.copy_from_slice(&value.to_le_bytes());
            }
            for at in (first..first + ADDRESSES).step_by(PAGE_SIZE as usize) {
                let _ = memory.write(Maddr(at), &page);
            }
        }
    }

    /// Enters a target if a place for it is free.
    pub fn offer(self, memory: &MachineMemory, target: u64, address: u64) {
        let key = target.wrapping_neg();
        let places = self.places(target);
        let of_it = places.into_iter().find(|place| self.key(memory, *place) == key);
        let free = || places.into_iter().find(|place| self.key(memory, *place) == FREE);
        if let Some(place) = of_it.or_else(free) {
            self.put(memory, place, key, address);
        }
    }

    /// Enters a target that was looked for. What is in its first place goes to its own second one.
    pub fn insert(self, memory: &MachineMemory, target: u64, address: u64) {
        let [first, _] = self.places(target);
        let old = self.key(memory, first);
        if old != FREE && old != target.wrapping_neg() {
            let [a, b] = self.places(old.wrapping_neg());
            let other = if a == first { b } else { a };
            let of_old = memory.load_u64(self.address_at(first)).unwrap_or(0);
            if other != first {
                self.put(memory, other, old, of_old);
            }
        }
        self.put(memory, first, target.wrapping_neg(), address);
    }
}
