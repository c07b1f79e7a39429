//! The queued update of each page-table entry, so that code that reads a page table sees the values that it queued.
//!
//! A hash table of positions in the queue's list of updates, with linear probing; at most half full.
#![forbid(unsafe_code)]

use paravane_abi::mmu::MmuUpdate;

use super::capacity::UPDATES;

const SLOTS: usize = (2 * UPDATES).next_power_of_two();

/// Positions, plus one; 0 is a free slot.
#[derive(Debug)]
pub(super) struct Pending {
    slots: [u16; SLOTS],
}

impl Pending {
    pub(super) const fn new() -> Self {
        Self { slots: [0; SLOTS] }
    }

    /// Notes that `updates[position]` is the last update of its entry.
    pub(super) fn insert(&mut self, updates: &[MmuUpdate; UPDATES], position: usize) {
        let slot = self.locate(updates, updates[position].maddr());
        self.slots[slot] = position as u16 + 1;
    }

    /// The value that the last update of an entry gives it.
    pub(super) fn find(&self, updates: &[MmuUpdate; UPDATES], maddr: u64) -> Option<u64> {
        let position = self.slots[self.locate(updates, maddr)].checked_sub(1)?;
        Some(updates[usize::from(position)].val)
    }

    /// Empties the table, which holds exactly the updates at `positions`.
    pub(super) fn clear(&mut self, updates: &[MmuUpdate; UPDATES], positions: impl Iterator<Item = usize>) {
        for position in positions {
            // A key lies in the run of used slots that its hash points into: clearing runs clears all keys.
            let mut slot = hash(updates[position].maddr());
            while self.slots[slot] != 0 {
                self.slots[slot] = 0;
                slot = (slot + 1) % SLOTS;
            }
        }
    }

    /// The slot of an entry, or the free one where it belongs.
    fn locate(&self, updates: &[MmuUpdate; UPDATES], maddr: u64) -> usize {
        let mut slot = hash(maddr);
        while let Some(position) = self.slots[slot].checked_sub(1) {
            if updates[usize::from(position)].maddr() == maddr {
                break;
            }
            slot = (slot + 1) % SLOTS;
        }
        slot
    }
}

/// Fibonacci hashing of the entry's number.
fn hash(maddr: u64) -> usize {
    ((maddr >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.trailing_zeros())) as usize
}
