//! All of a domain's free memory, mapped and handed out by frames or by stretches.

use core::mem::MaybeUninit;
use core::ops::Range;

use super::error::PagingError;
use super::frames::FrameSource;
use super::mmu::Mmu;
use crate::Boot;
use crate::hypercall::Hypercalls;
use crate::memory::{Memory, Pfn};

/// A null pointer, and what is within reach of one, is never memory: programs on a host leave as much unused.
const NEAR_NULL: u64 = 16;
/// Tables above those of the last level that a step of the mapping may need.
const UPPER_TABLES: u64 = 4;

/// A domain's free memory: what [`Boot::take_memory`] returns.
///
/// It hands out single frames, as the [`FrameSource`] of page tables, and stretches of memory for a heap or for devices
/// ([`take_bytes`](Self::take_bytes)). A kernel with an allocator of its own takes everything at once:
///
/// ```no_run
/// # fn kernel(boot: paravane_guest::Boot) -> Result<(), paravane_guest::paging::PagingError> {
/// let (mmu, mut free) = boot.take_memory()?;
/// while let Some(stretch) = free.take_bytes(free.largest_stretch()) {
///     // my_allocator.add(stretch)
/// #   let _ = stretch;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct FreeMemory {
    memory: Memory,
    ranges: [Range<u64>; 2],
    /// The last frame given back; its first word leads to the one before it.
    given_back: Option<Pfn>,
    given_back_count: u64,
}

impl FreeMemory {
    /// How many frames are free.
    pub fn frames(&self) -> u64 {
        self.ranges.iter().map(count).sum::<u64>() + self.given_back_count
    }

    /// The most frames that [`take_bytes`](Self::take_bytes) can give.
    pub fn largest_stretch(&self) -> u64 {
        self.ranges.iter().map(count).max().unwrap_or(0)
    }

    /// Takes `frames` consecutive frames, as memory whose contents nobody knows. `None` if there is no such stretch, or
    /// for no frames.
    pub fn take_bytes(&mut self, frames: u64) -> Option<&'static mut [MaybeUninit<u8>]> {
        let range = self
            .ranges
            .iter_mut()
            .filter(|range| frames != 0 && count(range) >= frames)
            .min_by_key(|r| count(r))?;
        range.end -= frames;
        // SAFETY: the frames are free and mapped (contract of `claim`), and now nobody else's for ever.
        Some(unsafe { self.memory.bytes(Pfn(range.end), frames) })
    }

    /// Maps all memory; the frames of `free` are the caller's.
    ///
    /// # Safety
    /// The frames of both ranges are free, and those of the first are mapped.
    unsafe fn claim<H: Hypercalls>(mmu: &mut Mmu<'_, H>, free: [Range<u64>; 2]) -> Result<Self, PagingError> {
        let memory = mmu.memory();
        let [below, after] = free;
        let first = if memory.virt_base() == 0 { NEAR_NULL.min(below.end) } else { below.start };
        let mut mapped = mmu.direct_map_end(Pfn(after.start)).0;
        let ranges = [first..below.end, after.start..mapped];
        let mut free = Self { memory, ranges, given_back: None, given_back_count: 0 };
        while mapped < after.end {
            // As far as the free frames last for tables.
            let tables = free.frames().saturating_sub(UPPER_TABLES);
            let end = mapped.saturating_add(tables * TABLE_FRAMES).min(after.end);
            if end == mapped {
                return Err(PagingError::OutOfFrames);
            }
            mmu.extend_direct_map(&mut free, Pfn(mapped)..Pfn(end))?;
            let [_, after] = &mut free.ranges;
            // Tables may have used up what there was of it.
            *after = after.start..end;
            mapped = end;
        }
        Ok(free)
    }
}

/// Frames that one table of the last level maps.
const TABLE_FRAMES: u64 = 512;

fn count(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

// SAFETY: the contract of `claim`: no frame is in two ranges; frames that come back are the caller's no longer.
unsafe impl FrameSource for FreeMemory {
    fn take(&mut self) -> Option<Pfn> {
        if let Some(frame) = self.given_back {
            // Its first word is the next one's number plus one.
            self.given_back = self.memory.load(frame, 0).checked_sub(1).map(Pfn);
            self.given_back_count -= 1;
            return Some(frame);
        }
        self.ranges.iter_mut().find_map(Iterator::next).map(Pfn)
    }

    fn give(&mut self, frame: Pfn) {
        self.memory.store(frame, 0, self.given_back.map_or(0, |next| next.0 + 1));
        self.given_back = Some(frame);
        self.given_back_count += 1;
    }
}

impl Boot {
    /// Maps all of the domain's memory, and hands out what is free of it: all that a kernel without page tables of its
    /// own design needs to call for memory.
    ///
    /// # Errors
    /// What the hypervisor answers, or that its range is in the way of the direct map.
    ///
    /// # Panics
    /// When [`Boot::mmu`] or this function was called before.
    pub fn take_memory(&self) -> Result<(Mmu<'static>, FreeMemory), PagingError> {
        let mut mmu = self.mmu();
        // SAFETY: `mmu` panics the second time, so that nobody else has these frames, except by a promise of `unsafe`
        // code not to use them twice. A domain builder maps memory from its first frame on.
        let free = unsafe { FreeMemory::claim(&mut mmu, self.free_frames()) }?;
        Ok((mmu, free))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine::machine;
    use super::*;

    #[test]
    fn every_free_frame_is_handed_out_once() {
        let (_, mut mmu, _) = machine();
        // SAFETY: memory of the fixture, which nothing else uses.
        let mut free = unsafe { FreeMemory::claim(&mut mmu, [7..100, 512..4096]) }.unwrap();
        assert_eq!(mmu.direct_map_end(Pfn(512)), Pfn(4096));
        let before = free.frames();
        assert!(before > 3500, "{before}: only tables were used");
        let stretch = free.take_bytes(100).unwrap();
        assert_eq!(stretch.len(), 100 * 4096);
        assert!(free.take_bytes(free.largest_stretch() + 1).is_none() && free.take_bytes(0).is_none());
        let mut seen = std::collections::HashSet::new();
        while let Some(frame) = free.take() {
            assert!(seen.insert(frame));
        }
        assert_eq!(seen.len() as u64, before - 100);
        let (a, b) = (Pfn(600), Pfn(700));
        free.give(a);
        free.give(b);
        assert_eq!((free.frames(), free.take(), free.take(), free.take()), (2, Some(b), Some(a), None));
    }
}
