//! The table by which translated code finds the translation of an indirect transfer's target.
//!
//! A target may be in one of two places. The first holds nothing but an address: what is there checks by itself that it
//! is what was looked for. The second, for targets that meet another in their first place, holds keys as well; with one
//! place only, two targets that are both in use would leave for the host each time. A key is the negative of its
//! target, so that the code finds equality by adding.

use crate::machine::memory::{MachineMemory, Maddr, PAGE_SIZE};

/// First places: some for each target of a kernel all of which is translated.
const FIRST: u64 = 1 << 14;
/// Second places.
const SECOND: u64 = 1 << 12;
/// Offset of the second places' keys.
pub(super) const KEYS: u64 = FIRST * 8;
/// Offset of the second places' addresses.
pub(super) const ADDRESSES: u64 = KEYS + SECOND * 8;
/// The key of a place that is free: of a target that does not exist, because no code can be at the last address.
const FREE: u64 = 1;
/// Frames of the table.
pub(super) const FRAMES: u64 = (FIRST + 2 * SECOND) * 8 / PAGE_SIZE;
/// The bits of a target that select its first and its second place. Targets within half a megabyte that meet in their
/// first place do not meet in their second one.
pub(super) const MASKS: [u64; 2] = [FIRST - 1, NEAR << NEAR_SHIFT | FAR << FAR_SHIFT];
const NEAR: u64 = 0x7f;
const NEAR_SHIFT: u32 = 4;
const FAR: u64 = 0x1f;
const FAR_SHIFT: u32 = FIRST.trailing_zeros();

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
        if self.any_bits {
            target >> NEAR_SHIFT & NEAR | (target >> FAR_SHIFT & FAR) << NEAR.count_ones()
        } else {
            target >> 8 & 0xff
        }
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

    /// Enters a target, if there is room for it without driving another out.
    pub fn offer(&mut self, memory: &MachineMemory, target: u64, address: u64) {
        let place = self.first(target) as usize;
        let (Some(key), Some(old)) = (self.keys.get(place).copied(), self.addresses.get(place).copied())
        else {
            return;
        };
        if key == FREE || key == target.wrapping_neg() {
            self.put_first(memory, target, address);
        } else if self.is_second_free(memory, target) {
            self.put_second(memory, target, address);
        } else if self.is_second_free(memory, key.wrapping_neg()) {
            self.put_second(memory, key.wrapping_neg(), old);
            self.put_first(memory, target, address);
        }
    }

    fn is_second_free(&self, memory: &MachineMemory, target: u64) -> bool {
        memory.load_u64(Maddr(self.at.0 + KEYS + self.second(target) * 8)) == Ok(FREE)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::Backing;

    /// Where a lookup ends, as the code of `lookup.rs` does it.
    fn look_up(targets: &Targets, memory: &MachineMemory, target: u64) -> Option<u64> {
        let word = |offset| memory.load_u64(Maddr(targets.at.0 + offset)).unwrap();
        let place = targets.first(target);
        if targets.keys[place as usize] == target.wrapping_neg() {
            return Some(word(place * 8));
        }
        let place = targets.second(target) * 8;
        (word(KEYS + place) == target.wrapping_neg()).then(|| word(ADDRESSES + place))
    }

    #[test]
    fn targets_that_meet_are_both_found() {
        let memory = MachineMemory::new(FRAMES, 1, Backing::Anonymous).unwrap();
        for any_bits in [true, false] {
            let mut targets = Targets::new(Maddr(0), any_bits);
            targets.clear(&memory, 7);
            let pair = [0x4010_3b98, if any_bits { 0x4014_3b98 } else { 0x4010_3c98 }];
            for (target, address) in pair.into_iter().zip([1, 2]) {
                targets.offer(&memory, target, address);
            }
            assert_eq!(pair.map(|target| look_up(&targets, &memory, target)), [Some(1), Some(2)]);
            targets.insert(&memory, pair[1], 3);
            assert_eq!(pair.map(|target| look_up(&targets, &memory, target)), [Some(1), Some(3)]);
            targets.clear(&memory, 7);
            assert_eq!(look_up(&targets, &memory, pair[0]), None);
        }
    }

    #[test]
    fn who_has_another_place_makes_room() {
        let memory = MachineMemory::new(FRAMES, 1, Backing::Anonymous).unwrap();
        let mut targets = Targets::new(Maddr(0), true);
        targets.clear(&memory, 7);
        // The second and the third have the same second place; the third meets the first one in its first.
        let all = [0x4014_3b98, 0x4010_3b98, 0x4010_7b98, 0x4010_3b9b, 0x4014_3b9b];
        let second = |n: usize| targets.second(all[n]);
        assert_eq!((second(1), targets.first(all[3])), (second(3), targets.first(all[4])));
        for (target, address) in all.into_iter().zip(1..) {
            targets.offer(&memory, target, address);
        }
        assert_eq!(all.map(|target| look_up(&targets, &memory, target)), [1, 2, 3, 4, 5].map(Some));
    }

    /// As PEXT does it.
    #[test]
    fn a_place_is_the_bits_of_its_mask() {
        let pext = |value: u64, mask: u64| {
            let bits = (0..64).filter(|bit| mask >> bit & 1 != 0).map(|bit| value >> bit & 1);
            bits.zip(0..).fold(0, |sum, (bit, n)| sum | bit << n)
        };
        let targets = Targets::new(Maddr(0), true);
        for target in [0, 0x4014_3b98, 0xffff_ffff_8123_4567, u64::MAX] {
            assert_eq!(targets.first(target), pext(target, MASKS[0]));
            assert_eq!(targets.second(target), pext(target, MASKS[1]));
        }
        assert_eq!((MASKS[0].count_ones(), MASKS[1].count_ones()), (14, 12));
        assert_eq!(1 << MASKS[1].count_ones(), SECOND);
    }
}
