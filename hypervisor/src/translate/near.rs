//! How tables that are looked up by addresses of code are laid out: what is near in the code is near in the table.
//!
//! The tables have room for all blocks that there may ever be, but a kernel's first visit to a piece of its code asks
//! for a few dozen addresses within some pages. Spread at random, as the standard hash does to keep strangers from
//! choosing collisions, each would touch memory that nothing has touched before. The only one who can choose collisions
//! here is the kernel whose own time is spent.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by addresses of code, or by numbers of pages with code.
pub(super) type NearMap<const GRAIN: u32, V> = HashMap<u64, V, BuildHasherDefault<Near<GRAIN>>>;
/// By addresses: blocks seldom begin within 2^3 bytes of each other.
pub(super) type ByAddress<V> = NearMap<3, V>;
/// By numbers of pages or frames.
pub(super) type ByPage<V> = NearMap<0, V>;

/// Odd, with its bits spread: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bits within a piece of code that stays together.
const TOGETHER: u32 = 17;

/// The hash of one number.
#[derive(Debug, Default)]
pub(super) struct Near<const GRAIN: u32>(u64);

impl<const GRAIN: u32> Hasher for Near<GRAIN> {
    fn finish(&self) -> u64 {
        let place = self.0 >> GRAIN;
        // The map takes its place from the low bits, and tells neighbours apart by the high ones.
        let mixed = place.wrapping_mul(SPREAD);
        let far = (place >> TOGETHER).wrapping_mul(SPREAD) >> 32;
        (place ^ far) & u64::from(u32::MAX) | mixed & !u64::from(u32::MAX)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> u64 {
        let mut hasher = Near::<3>::default();
        hasher.write_u64(n);
        hasher.finish()
    }

    #[test]
    fn code_of_one_page_lies_together() {
        let places: Vec<u64> = (0..4096).map(|at| hash(0x4000_3000 + at) & 0xffff).collect();
        let (least, most) = (places.iter().min(), places.iter().max());
        assert_eq!(most.zip(least).map(|(most, least)| most - least), Some(511));
    }

    #[test]
    fn pages_at_the_same_place_of_distant_pieces_do_not_meet() {
        let mut places: Vec<u64> = (0..64).map(|n| hash(0x4000_3000 + (n << 24)) & 0xffff).collect();
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > 56, "{} of 64 differ", places.len());
    }
}
