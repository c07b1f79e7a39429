//! The table by which translated code finds the translation of an indirect transfer's target.
//!
//! A target may be in one of two places. The first holds nothing but an address: what is there checks by itself that it
//! is what was looked for. The second, for targets that meet another in their first place, holds keys as well; with one
//! place only, two targets that are both in use would leave for the host each time. A key is the negative of its
//! target, so that the code finds equality by adding.

use crate::machine::memory::{MachineMemory, Maddr, PAGE_SIZE};

/// First places.
const FIRST: u64 = 4096;
/// Second places.
const SECOND: u64 = 2048;
/// Offset of the second places' keys.
pub(super) const KEYS: u64 = FIRST * 8;
/// Offset of the second places' addresses.
pub(super) const ADDRESSES: u64 = KEYS + SECOND * 8;
/// The key of a place that is free: of a target that does not exist, because no code can be at the last address.
const FREE: u64 = 1;
/// The bits of a target that select its first and its second place.
pub(super) const MASKS: [u64; 2] = [FIRST - 1, (SECOND - 1) << 5];

/// The table.
#[derive(Debug)]
pub(super) struct Targets {
    at: Maddr,
    /// Whether the processor can take any bits: if not, only a byte selects a place.
    any_bits: bool,
    /// The keys of the first places.
    keys: Vec<u64>,
    /// The addresses there.
    addresses: Vec<u64>,
}

impl Targets {
    pub fn new(at: Maddr, any_bits: bool) -> Self {
        Self { at, any_bits, keys: vec![FREE; FIRST as usize], addresses: vec![0; FIRST as usize] }
    }

    fn first(&self, target: u64) -> u64 {
        target & if self.any_bits { FIRST - 1 } else { 0xff }
    }

    fn second(&self, target: u64) -> u64 {
        if self.any_bits { target >> 5 & (SECOND - 1) } else { target >> 8 & 0xff }
    }

    fn set(&self, memory: &MachineMemory, offset: u64, value: u64) {
        // These frames exist: the layout has them. Nothing of the guest runs while this is changed.
        let _ = memory.store_u64(Maddr(self.at.0 + offset), value);
    }

    fn put_first(&mut self, memory: &MachineMemory, target: u64, address: u64) {
        let place = self.first(target);
        if let Some(key) = self.keys.get_mut(place as usize) {
            *key = target.wrapping_neg();
        }
        if let Some(word) = self.addresses.get_mut(place as usize) {
            *word = address;
        }
        self.set(memory, place * 8, address);
    }

    fn put_second(&self, memory: &MachineMemory, target: u64, address: u64) {
        let place = self.second(target);
        self.set(memory, ADDRESSES + place * 8, address);
        self.set(memory, KEYS + place * 8, target.wrapping_neg());
    }

    /// Empties it. Whoever is led to a free place comes to `nowhere`.
    pub fn clear(&mut self, memory: &MachineMemory, nowhere: u64) {
        self.keys.fill(FREE);
        for (first, end, value) in
            [(0, KEYS, nowhere), (KEYS, ADDRESSES, FREE), (ADDRESSES, ADDRESSES + SECOND * 8, nowhere)]
        {
            let mut page = [0u8; PAGE_SIZE as usize];
            for word in page.chunks_exact_mut(8) {
                word.copy_from_slice(&value.to_le_bytes());
            }
            for offset in (first..end).step_by(PAGE_SIZE as usize) {
                let _ = memory.write(Maddr(self.at.0 + offset), &page);
            }
        }
    }

    /// Enters a target, if its first place is free or its own already.
    pub fn offer(&mut self, memory: &MachineMemory, target: u64, address: u64) {
        let key = self.keys.get(self.first(target) as usize).copied();
        if key == Some(FREE) || key == Some(target.wrapping_neg()) {
            self.put_first(memory, target, address);
        } else {
            let place = Maddr(self.at.0 + KEYS + self.second(target) * 8);
            if memory.load_u64(place) == Ok(FREE) {
                self.put_second(memory, target, address);
            }
        }
    }

    /// Enters a target that was looked for. What is in its first place goes to its own second one.
    pub fn insert(&mut self, memory: &MachineMemory, target: u64, address: u64) {
        let place = self.first(target) as usize;
        if let (Some(key), Some(old)) = (self.keys.get(place), self.addresses.get(place))
            && *key != FREE
            && *key != target.wrapping_neg()
        {
            self.put_second(memory, key.wrapping_neg(), *old);
        }
        self.put_first(memory, target, address);
    }
}
