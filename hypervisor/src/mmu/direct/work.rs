//! The unfinished parts of operations, and the budget of the present one.

use paravane_abi::addr;

use super::frame::Level;
use crate::machine::memory::Mfn;

const ENTRIES: u32 = addr::PT_ENTRIES as u32;

/// Unfinished work.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) kept: Vec<Mfn>,
    pub(super) dropping: Vec<Mfn>,
    /// The table whose validation the next operation may take up again.
    pub(super) resume: Option<(Mfn, Level)>,
    pub(super) budget: u32,
    /// How many entries, or descriptors, were looked at since somebody asked.
    pub(super) looked_at: u64,
    /// What `budget` is at the beginning of an operation.
    pub(super) limit: u32,
}

impl Work {
    /// Nothing unfinished, and `limit` entries for each operation: at least four tables, so that operations can finish.
    pub(super) fn new(limit: u32) -> Self {
        Self { kept: Vec::new(), dropping: Vec::new(), resume: None, budget: 0, looked_at: 0, limit }
    }
    pub(super) fn spend(&mut self) -> bool {
        match self.budget.checked_sub(ENTRIES) {
            Some(rest) => {
                self.budget = rest;
                self.looked_at += u64::from(ENTRIES);
                true
            }
            None => false,
        }
    }
    /// The frames that the lists hold a type reference to.
    #[cfg(test)]
    pub(super) fn parked(&self) -> impl Iterator<Item = Mfn> {
        self.kept.iter().chain(&self.dropping).copied()
    }
}
