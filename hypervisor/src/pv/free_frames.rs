//! The frames that a guest gave back: what it may be given again.
//!
//! A bitmap by machine frame number and nothing else; whose a frame is, is `mmu::direct`'s knowledge. Empty
//! for a guest that never balloons, and then it costs a length and a pointer: the bitmap is made by the first
//! frame that comes, and never grows.

use std::ops::Range;

use crate::host::zeroed::zeroed;
use crate::machine::memory::Mfn;

const BITS: u64 = 64;
/// The largest run that can be asked for: a superpage, Xen's limit for a domU.
pub const MAX_ORDER: u32 = 9;

/// A set of frames.
#[derive(Debug, Default)]
pub struct FreeFrames {
    words: Vec<u64>,
    frames: u64,
    count: u64,
}

impl FreeFrames {
    /// An empty set over a machine of `frames` frames.
    pub fn new(frames: u64) -> Self {
        Self { words: Vec::new(), frames, count: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.count
    }
    /// Whether no frame is free.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a frame.
    pub fn insert(&mut self, mfn: Mfn) {
        if self.words.is_empty() {
            // A host that has no memory for the bitmap loses the frame to the guest, and nothing else.
            self.words =
                zeroed("the frames that a guest gave back", self.frames.div_ceil(BITS)).unwrap_or_default();
        }
        if let Some((word, bit)) = self.bit(mfn)
            && *word & bit == 0
        {
            *word |= bit;
            self.count += 1;
        }
    }

    /// Takes out a run of `2^order` frames, aligned to its size and below `limit`; the first of them.
    pub fn take(&mut self, order: u32, limit: Mfn) -> Option<Mfn> {
        let size = 1u64 << order.min(MAX_ORDER);
        if order > MAX_ORDER || self.count < size {
            return None;
        }
        let first = self.find(size).filter(|first| first + size <= limit.0)?;
        for mfn in first..first + size {
            let (word, bit) = self.bit(Mfn(mfn))?;
            *word &= !bit;
        }
        self.count -= size;
        Some(Mfn(first))
    }

    /// Takes out one frame; false if it was not there.
    pub fn remove(&mut self, mfn: Mfn) -> bool {
        let there = self.bit(mfn).is_some_and(|(word, bit)| std::mem::replace(word, *word & !bit) & bit != 0);
        self.count -= u64::from(there);
        there
    }

    /// The lowest aligned run of `size` frames, all of them in the set.
    fn find(&self, size: u64) -> Option<u64> {
        let whole = usize::try_from(size / BITS).ok()?;
        if whole > 0 {
            let run = self.words.chunks_exact(whole).position(|run| run.iter().all(|w| *w == u64::MAX))?;
            return Some(run as u64 * size);
        }
        let mask = (1u64 << size) - 1;
        let (index, word) = self.words.iter().enumerate().find(|(_, w)| run_in(**w, size, mask).is_some())?;
        Some(index as u64 * BITS + run_in(*word, size, mask)?)
    }

    fn bit(&mut self, mfn: Mfn) -> Option<(&mut u64, u64)> {
        let word = self.words.get_mut(usize::try_from(mfn.0 / BITS).ok()?)?;
        Some((word, 1 << (mfn.0 % BITS)))
    }
}

/// Where in a word there is an aligned run of ones like `mask`.
fn run_in(word: u64, size: u64, mask: u64) -> Option<u64> {
    if word == 0 {
        return None;
    }
    let places: Range<u64> = 0..BITS / size;
    places.map(|i| i * size).find(|shift| word >> shift & mask == mask)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use crate::pv::free_frames::*;

    const NO_LIMIT: Mfn = Mfn(u64::MAX);

    #[test]
    fn runs_are_aligned_and_as_long_as_asked() {
        let mut f = FreeFrames::new(2048);
        assert_eq!(f.take(0, NO_LIMIT), None);
        (1..2048).for_each(|mfn| f.insert(Mfn(mfn)));
        assert_eq!(f.take(9, NO_LIMIT), Some(Mfn(512)), "the first superpage lacks a frame");
        assert_eq!(f.take(3, NO_LIMIT), Some(Mfn(8)));
        assert_eq!(f.take(0, NO_LIMIT), Some(Mfn(1)));
        assert_eq!(f.take(1, NO_LIMIT), Some(Mfn(2)));
        assert_eq!(f.take(10, NO_LIMIT), None);
        assert_eq!(f.take(9, Mfn(1535)), None, "beyond the limit");
        assert_eq!(f.take(9, Mfn(1536)), Some(Mfn(1024)));
        f.insert(Mfn(4096));
        assert_eq!(f.len(), 2047 - 512 - 8 - 1 - 2 - 512, "what is not a frame is not counted");
    }

    proptest! {
        /// Against a set.
        #[test]
        fn like_a_set(ops in prop::collection::vec((0u64..300, 0u32..8, any::<bool>()), 1..400)) {
            let (mut f, mut model) = (FreeFrames::new(300), BTreeSet::new());
            for (mfn, order, insert) in ops {
                if insert {
                    f.insert(Mfn(mfn));
                    model.insert(mfn);
                } else if order == 7 {
                    prop_assert_eq!(f.remove(Mfn(mfn)), model.remove(&mfn));
                } else if let Some(Mfn(first)) = f.take(order, NO_LIMIT) {
                    prop_assert!(first.is_multiple_of(1 << order));
                    for mfn in first..first + (1 << order) {
                        prop_assert!(model.remove(&mfn));
                    }
                } else {
                    let run = |first: u64| (first..first + (1 << order)).all(|m| model.contains(&m));
                    prop_assert!(!(0..300).step_by(1 << order).any(run));
                }
                prop_assert_eq!(f.len(), model.len() as u64);
            }
        }
    }
}
