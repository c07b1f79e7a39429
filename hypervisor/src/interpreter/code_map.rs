//! Which bytes of memory have been decoded, so that stores to them are noticed.

use crate::machine::memory::{Maddr, PAGE_SIZE};

/// The bytes of a page that decoded instructions consist of.
type Bytes = [u64; 64];

/// By frame, which chunk of the decode cache is made from it.
pub(super) struct CodeMap {
    /// 0 for none, or the chunk's number and 1. One for each frame of the machine.
    chunks: Vec<u32>,
    /// By chunk.
    covered: Vec<Bytes>,
    /// Chunks whose code was stored to.
    written: Vec<u32>,
}

impl CodeMap {
    /// Of memory with so many frames.
    pub fn new(frames: u64) -> Self {
        let frames = usize::try_from(frames).unwrap_or(0);
        Self { chunks: vec![0; frames], covered: Vec::new(), written: Vec::with_capacity(16) }
    }

    fn frame(at: Maddr) -> usize {
        usize::try_from(at.mfn().0).unwrap_or(usize::MAX)
    }

    /// The chunk made from the frame of `at`.
    #[inline]
    pub fn chunk(&self, at: Maddr) -> Option<u32> {
        self.chunks.get(Self::frame(at))?.checked_sub(1)
    }

    /// Whether there is one.
    pub fn has(&self, at: Maddr) -> bool {
        self.chunk(at).is_some()
    }

    /// The frame of `at` has this chunk now, of which nothing is decoded yet.
    pub fn assign(&mut self, at: Maddr, chunk: u32) {
        if let Some(slot) = self.chunks.get_mut(Self::frame(at)) {
            *slot = chunk + 1;
        }
        let index = chunk as usize;
        if self.covered.len() <= index {
            self.covered.resize_with(index + 1, || [0; 64]);
        }
        self.clear(chunk);
    }

    /// Nothing of this chunk is decoded any more.
    pub fn clear(&mut self, chunk: u32) {
        if let Some(bytes) = self.covered.get_mut(chunk as usize) {
            *bytes = [0; 64];
        }
    }

    /// The frame of `at` has no chunk any more.
    pub fn release(&mut self, at: Maddr) {
        if let Some(slot) = self.chunks.get_mut(Self::frame(at)) {
            *slot = 0;
        }
    }

    /// `len` bytes at `offset` of the chunk's page were decoded.
    pub fn cover(&mut self, chunk: u32, offset: u64, len: usize) {
        let Some(bytes) = self.covered.get_mut(chunk as usize) else { return };
        for at in (offset..PAGE_SIZE).take(len) {
            if let Some(word) = bytes.get_mut((at / 64) as usize) {
                *word |= 1 << (at % 64);
            }
        }
    }

    /// `len` bytes at `at`, within a frame, were stored to; whether some of them had been decoded.
    pub fn stored(&mut self, at: Maddr, len: usize) -> bool {
        let Some(chunk) = self.chunk(at) else { return false };
        let Some(bytes) = self.covered.get(chunk as usize) else { return false };
        let hit = (at.offset()..PAGE_SIZE)
            .take(len)
            .any(|at| bytes.get((at / 64) as usize).is_some_and(|word| word >> (at % 64) & 1 != 0));
        if hit && !self.written.contains(&chunk) {
            self.written.push(chunk);
        }
        hit
    }

    /// The chunks whose code was stored to since the last call.
    pub fn take_written(&mut self) -> Option<u32> {
        self.written.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stores_to_decoded_bytes_count() {
        let mut map = CodeMap::new(8);
        map.assign(Maddr(0x2000), 0);
        map.cover(0, 0xffe, 15);
        map.cover(0, 60, 8);
        assert!(!map.stored(Maddr(0x1040), 8), "another frame");
        assert!(!map.stored(Maddr(0x2000 + 52), 8) && !map.stored(Maddr(0x2000 + 68), 8));
        assert_eq!(map.take_written(), None);
        for (at, len) in [(0x2000 + 53, 8), (0x2000 + 67, 1), (0x2ff7, 8)] {
            assert!(map.stored(Maddr(at), len));
            assert!(map.stored(Maddr(at), len));
            assert_eq!((map.take_written(), map.take_written()), (Some(0), None));
        }
        map.clear(0);
        assert!(!map.stored(Maddr(0x2000 + 60), 8) && map.has(Maddr(0x2000)));
        map.release(Maddr(0x2fff));
        assert!(!map.has(Maddr(0x2000)));
        assert!(!map.stored(Maddr(u64::MAX), 8));
    }
}
