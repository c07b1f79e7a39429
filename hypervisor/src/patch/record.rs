//! What is remembered of patches.

use std::ops::Range;

use super::site::Patch;
use crate::machine::memory::{MachineMemory, Maddr};

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
    pub held: Vec<u8>,
}

impl Installed {
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
