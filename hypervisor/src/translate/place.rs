//! Where in the guest's kernel view our pages are: state page and log, table of targets, cache, one after the other.

use std::ops::Range;

use super::targets;
use crate::machine::memory::{MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::mmu::shadow::OverlayPage;

/// The frames that are ours, and the linear address of the first.
#[derive(Clone, Debug)]
pub(super) struct Place {
    state: Range<u64>,
    code: Range<u64>,
    base: u64,
    /// Pages after all others for aliases of the guest's own frames.
    aliases: u64,
}

/// How far code and what it refers to may be apart. A RIP-relative displacement reaches twice as far; the rest is for
/// code that refers to data of its own.
const REACH: u64 = 1 << 30;
/// The distance between the addresses that are tried.
const STEP: u64 = 16 << 20;

impl Place {
    /// In these frames, at no address yet.
    pub fn new(state: Range<u64>, code: Range<u64>, aliases: u64) -> Self {
        Self { state, code, base: 0, aliases }
    }

    /// Linear addresses that suit code around `near`, the best first: within reach, and such that 32 bits name them.
    pub fn candidates(&self, near: u64) -> impl Iterator<Item = u64> + use<> {
        let size = self.size();
        let near = near & !(STEP - 1);
        let below = (1..REACH / STEP).map(move |n| near.wrapping_sub(n * STEP));
        let above = (4..REACH / STEP).map(move |n| near.wrapping_add(n * STEP));
        below.chain(above).filter(move |base| {
            let end = base.wrapping_add(size);
            // Where mov [rax * 8 + disp32] reaches, and not the pages that a host may keep to itself.
            (STEP..1 << 31).contains(base) && end < 1 << 31
                || *base >= 0u64.wrapping_sub(1 << 31) && end > *base
        })
    }

    /// Moves to another address.
    pub fn set_base(&mut self, base: u64) {
        self.base = base;
    }

    fn size(&self) -> u64 {
        (self.states() + self.code.end.saturating_sub(self.code.start) + self.aliases) * PAGE_SIZE
    }

    /// How many pages the kernel can write, from the first on.
    pub fn states(&self) -> u64 {
        self.state.end.saturating_sub(self.state.start)
    }

    /// The address of the first alias.
    pub fn first_alias(&self) -> u64 {
        self.base + self.size() - self.aliases * PAGE_SIZE
    }

    /// All the pages but aliases.
    pub fn pages(&self) -> Vec<OverlayPage> {
        let state = self.state.clone().map(|mfn| (mfn, true));
        let code = self.code.clone().map(|mfn| (mfn, false));
        let page = |((mfn, writable), n)| OverlayPage {
            va: self.base + n * PAGE_SIZE,
            mfn: Mfn(mfn),
            writable,
            executable: !writable,
        };
        state.chain(code).zip(0..).map(page).collect()
    }

    /// The table of targets.
    pub fn table(&self) -> (u64, Maddr) {
        (self.base + self.states() * PAGE_SIZE, Mfn(self.code.start).maddr())
    }

    /// The cache, and its size in bytes.
    pub fn cache(&self) -> (u64, Maddr, u32) {
        let first = self.code.start + targets::FRAMES;
        let size = self.code.end.saturating_sub(first) * PAGE_SIZE;
        let va = self.base + (self.states() + targets::FRAMES) * PAGE_SIZE;
        (va, Mfn(first).maddr(), u32::try_from(size).unwrap_or(!0xfff))
    }

    /// Whether the guest maps none of the pages at `base`, as far as `mapped` says.
    pub fn is_free(&self, base: u64, mut mapped: impl FnMut(u64) -> bool) -> bool {
        (0..self.size()).step_by(PAGE_SIZE as usize).all(|offset| !mapped(base + offset))
    }
}

/// Reads guest memory that is within a frame.
pub(super) fn read(memory: &MachineMemory, at: Maddr, buf: &mut [u8]) -> bool {
    memory.read(at, buf).is_ok()
}
