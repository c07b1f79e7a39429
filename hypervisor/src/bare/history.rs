//! The history of page faults, to notice a guest that makes no progress.

/// After so many faults in a row on an accessible page, everything that the engine has cached is declared stale.
pub(super) const SUSPICIOUS: u8 = 3;
/// After so many, the guest ends.
pub(super) const HOPELESS: u8 = 16;

/// What is remembered from one page fault to the next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FaultHistory {
    /// The address of the last spurious page fault, and how many there were in a row.
    spurious: (u64, u8),
    /// RIP and address of the last store that was let through by dropping what the shadow derived from the table.
    released: Option<(u64, u64)>,
}

impl FaultHistory {
    /// An exit other than a page fault came, with RIP at `rip`.
    pub fn progressed(&mut self, rip: u64) {
        self.spurious.1 = 0;
        if self.released.is_some_and(|(at, _)| at != rip) {
            self.released = None;
        }
    }

    /// A page fault was not spurious.
    pub fn filled(&mut self) {
        self.spurious.1 = 0;
    }

    /// A store to a page table was emulated.
    pub fn emulated(&mut self) {
        self.released = None;
    }

    /// Notes that a store from `rip` to `va` is let through; returns whether it was the last one already.
    pub fn releases_again(&mut self, rip: u64, va: u64) -> bool {
        self.released.replace((rip, va)) == Some((rip, va))
    }

    /// Notes a fault on a page that the shadow lets the guest access; returns how many there were in a row.
    pub fn count_spurious(&mut self, va: u64) -> u8 {
        let (last, count) = self.spurious;
        let count = if last == va { count.saturating_add(1) } else { 1 };
        self.spurious = (va, count);
        count
    }
}
