//! The contents of disks for workloads and tests: each word is a function of its place, so that misplaced data shows.
#![forbid(unsafe_code)]

/// Words in a block.
pub const WORDS: usize = 512;
/// Bytes in a block, the unit of these disks.
pub const BLOCK: usize = WORDS * 8;

/// The word at `index` of a disk with this seed. Words differ between places and between seeds.
pub const fn word(seed: u64, index: u64) -> u64 {
    (index ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index >> 7)
}

/// Writes a block.
///
/// # Panics
/// When `bytes` is not one block long.
pub fn fill(seed: u64, block: u64, bytes: &mut [u8]) {
    assert_eq!(bytes.len(), BLOCK);
    for (place, index) in bytes.chunks_exact_mut(8).zip(block * WORDS as u64..) {
        place.copy_from_slice(&word(seed, index).to_le_bytes());
    }
}

/// Whether `bytes` are the whole block with this number.
pub fn matches(seed: u64, block: u64, bytes: &[u8]) -> bool {
    let mut words = bytes.chunks_exact(8).zip(block * WORDS as u64..);
    bytes.len() == BLOCK && words.all(|(place, index)| *place == word(seed, index).to_le_bytes())
}

/// Whether `bytes` start with the first word of the block with this number.
pub fn starts(seed: u64, block: u64, bytes: &[u8]) -> bool {
    bytes.get(..8) == Some(&word(seed, block * WORDS as u64).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_recognised_in_its_place_only() {
        let mut bytes = [0; BLOCK];
        fill(7, 3, &mut bytes);
        assert!(matches(7, 3, &bytes) && starts(7, 3, &bytes));
        assert!(
            !matches(7, 4, &bytes)
                && !starts(7, 4, &bytes)
                && !matches(8, 3, &bytes)
                && !matches(7, 3, &bytes[8..])
        );
        bytes[BLOCK - 1] ^= 1;
        assert!(!matches(7, 3, &bytes) && starts(7, 3, &bytes));
    }
}
