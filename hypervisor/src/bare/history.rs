//! What page faults leave behind, to notice that a guest does not get on.

/// Faults on an accessible page in a row, after which the engine is told that all it has cached is stale...
pub(super) const SUSPICIOUS: u8 = 3;
/// ...and after which it is given up.
pub(super) const HOPELESS: u8 = 16;

/// What page faults leave behind for the next one: only to notice that nothing gets on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FaultHistory {
    /// Where the last page fault was spurious, and how often in a row.
    spurious: (u64, u8),
    /// RIP and address of the last store that could only be let through by dropping the table's shadow.
    released: Option<(u64, u64)>,
}

impl FaultHistory {
    /// Something else happened at `rip`.
    pub fn progressed(&mut self, rip: u64) {
        self.spurious.1 = 0;
        if self.released.is_some_and(|(at, _)| at != rip) {
            self.released = None;
        }
    }

    /// A missing shadow entry was filled, or a store to a page table came.
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
