//! What is remembered of patches.

use std::ops::Range;

use super::kernel::Kernel;
use super::site::Patch;
use crate::machine::memory::{MachineMemory, Maddr, PAGE_SIZE};

/// One jump, and its stub.
#[derive(Debug)]
pub(super) struct Installed {
    pub patch: Patch,
    /// The machine address of `patch.at`.
    pub maddr: Maddr,
    /// Where the stub can be entered instead of the guest's instructions.
    pub entries: Vec<(u64, u64)>,
    /// What is in memory since, from `maddr` on: the jump, and what is left of the code that it and the stub are made
    /// from.
    held: Vec<u8>,
}

impl Installed {
    /// A jump at `maddr`, made from `code`, the bytes of its page. What memory has by now is not asked: it would be
    /// believed whatever was stored since.
    pub fn new(patch: Patch, maddr: Maddr, entries: Vec<(u64, u64)>, code: &[u8]) -> Option<Self> {
        let len = patch.moved.end.max(patch.jump().end).checked_sub(patch.at)?;
        let mut held = part(code, maddr, usize::try_from(len).ok()?)?.to_vec();
        held.get_mut(..patch.bytes.len())?.copy_from_slice(&patch.bytes);
        Some(Self { patch, maddr, entries, held })
    }

    /// Whether what was replaced, and what is left of the guest's code, is what it is made from.
    pub fn is_made_of(&self, code: &[u8], k: &Kernel<'_>) -> bool {
        let mut now = vec![0; self.held.len()];
        k.shadow.read(k.memory, self.maddr, &mut now).is_ok()
            && part(code, self.maddr, now.len()) == Some(now.as_slice())
    }

    /// Where the stub goes on with the guest's instruction at `rip`, which a jump hides.
    pub fn entry(&self, rip: u64) -> Option<u64> {
        let hidden = self.patch.at..self.patch.at.saturating_add(self.patch.bytes.len() as u64);
        let inner = hidden.contains(&rip) && rip != self.patch.at;
        self.entries.iter().find(|(guest, _)| inner && *guest == rip).map(|(_, stub)| *stub)
    }
    /// The machine addresses of all that the jump and its stub were made from.
    pub fn made_from(&self) -> Range<u64> {
        self.maddr.0..self.maddr.0 + self.held.len() as u64
    }
    /// Whether memory is not what it was made to be: somebody stored there who is not seen.
    pub fn is_damaged(&self, memory: &MachineMemory) -> bool {
        let mut part = [0; 16];
        (self.maddr.0..).step_by(part.len()).zip(self.held.chunks(part.len())).any(|(at, held)| {
            let now = part.get_mut(..held.len()).unwrap_or_default();
            memory.read(Maddr(at), now).is_ok() && now != held
        })
    }
}

/// The `len` bytes at `maddr` of its page.
fn part(page: &[u8], maddr: Maddr, len: usize) -> Option<&[u8]> {
    page.get(usize::try_from(maddr.offset()).ok()?..)?.get(..len)
}

/// One patched site.
#[derive(Debug)]
pub(super) struct Site {
    pub jumps: Vec<Installed>,
}

impl Site {
    pub fn touches(&self, range: &Range<u64>) -> bool {
        self.jumps.iter().any(|j| j.patch.touches(range))
    }
    pub fn is_made_from(&self, range: &Range<u64>) -> bool {
        self.jumps.iter().any(|j| {
            let from = j.made_from();
            from.start < range.end && range.start < from.end
        })
    }
}

/// An instruction of the guest that a jump hides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hidden {
    pub rip: u64,
    pub maddr: Maddr,
    /// Its copy.
    pub stub: u64,
}

/// What a frame of code is known for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub pfn: u64,
    /// Stores to it since its last patch.
    pub stores: u32,
    /// It is not patched any more.
    pub closed: bool,
}

/// Places within pages: what is not in it need not be looked for in lists that are long, and not in any cache.
#[derive(Clone, Debug)]
pub(super) struct Offsets([u64; WORDS]);

const WORDS: usize = PAGE_SIZE as usize / 64;

impl Offsets {
    pub fn none() -> Self {
        Self([0; WORDS])
    }
    pub fn insert(&mut self, at: u64) {
        if let Some(word) = self.0.get_mut((at % PAGE_SIZE / 64) as usize) {
            *word |= 1 << (at % 64);
        }
    }
    /// Whether some member lies in its page where `at` lies in its own.
    pub fn may_have(&self, at: u64) -> bool {
        self.0.get((at % PAGE_SIZE / 64) as usize).is_some_and(|word| word >> (at % 64) & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_those_of_their_pages() {
        let mut offsets = Offsets::none();
        let members = [0, 0x103f, 0x4000_0fff, u64::MAX - 0x1000 + 0x41];
        assert!(!members.iter().any(|at| offsets.may_have(*at)));
        members.iter().for_each(|at| offsets.insert(*at));
        assert!(members.iter().all(|at| offsets.may_have(*at) && offsets.may_have(at ^ 0x7000)));
        assert!((0..PAGE_SIZE).filter(|at| offsets.may_have(*at)).count() == 4);
    }
}
