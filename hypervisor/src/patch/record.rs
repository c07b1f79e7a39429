//! What is remembered of patches.

use std::ops::Range;

use super::site::Patch;
use crate::machine::memory::Maddr;

/// One jump, and its stub.
#[derive(Debug)]
pub(super) struct Installed {
    pub patch: Patch,
    /// The machine address of `patch.at`.
    pub maddr: Maddr,
    /// Where the stub can be entered instead of the guest's instructions.
    pub entries: Vec<(u64, u64)>,
}

impl Installed {
    /// Where the stub goes on with the guest's instruction at `rip`, which a jump hides.
    pub fn entry(&self, rip: u64) -> Option<u64> {
        let hidden = self.patch.at..self.patch.at.saturating_add(self.patch.bytes.len() as u64);
        let inner = hidden.contains(&rip) && rip != self.patch.at;
        self.entries.iter().find(|(guest, _)| inner && *guest == rip).map(|(_, stub)| *stub)
    }
    /// The machine addresses of all that the stub was made from.
    pub fn moved(&self) -> Range<u64> {
        let from = self.maddr.0;
        from..from + (self.patch.moved.end - self.patch.moved.start)
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
            let (moved, jump) = (j.moved(), j.patch.jump());
            let end = moved.end.max(j.maddr.0 + (jump.end - jump.start));
            moved.start < range.end && range.start < end
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
