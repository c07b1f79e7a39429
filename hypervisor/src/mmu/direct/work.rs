//! The unfinished parts of operations, and the budget of the present one.
//!
//! An operation that stops half-way keeps no half-validated frame: what it finished is kept under the table that it
//! validates, and the same operation finds it there when it is issued again. Meanwhile other vCPUs make theirs. One
//! that is refused while anything is kept may have been refused for that reason alone: it is issued again until the
//! others are finished. What is never finished is given up after a while. So nothing unfinished is ever the reason of a
//! refusal, and what another vCPU does costs nobody their progress while they make any.

use std::collections::VecDeque;

use paravane_abi::addr;

use super::frame::Level;
use super::obstacle::Obstacle;
use crate::machine::memory::Mfn;

const ENTRIES: u32 = addr::PT_ENTRIES as u32;

/// Operations that are kept unfinished at a time: one for each vCPU that a domain can have. The guest can leave as many
/// as it likes; of those the oldest are given up.
pub(super) const UNFINISHED: usize = 64;

/// With several vCPUs: how many refusals wait for unfinished operations before those are given up. Each is an exit of
/// some 25 us, so that a vCPU that is preempted by the host for a moment can still finish its operation.
const PATIENCE: u32 = 256;

/// The table that an operation validates, at the top of what it may have to validate.
pub(super) type Top = (Mfn, Level);

/// An operation that is to be issued again.
#[derive(Debug)]
struct Unfinished {
    top: Top,
    kept: Vec<Mfn>,
}

/// What a refused operation found of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// Nothing: the refusal stands.
    Nothing,
    /// Something that may be the reason, and will be finished.
    Unfinished,
    /// The same, but it has been given up now.
    GivenUp,
}

/// Unfinished work.
#[derive(Debug)]
pub(super) struct Work {
    unfinished: VecDeque<Unfinished>,
    /// Refusals since the unfinished operations were last found to get on.
    waits: u32,
    patience: u32,
    pub(super) dropping: Vec<Mfn>,
    /// Tables that the present operation has finished.
    pub(super) kept: Vec<Mfn>,
    pub(super) budget: u32,
    /// How many entries, or descriptors, were looked at since somebody asked.
    pub(super) looked_at: u64,
    /// What `budget` is at the beginning of an operation.
    pub(super) limit: u32,
    /// What stood in the way of the last operation that was refused.
    pub(super) obstacle: Option<Obstacle>,
}

impl Work {
    /// Nothing unfinished, and `limit` entries for each operation: at least four tables, so that operations can finish.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            unfinished: VecDeque::new(),
            waits: 0,
            // One vCPU makes no other operation before it has finished the last, unless that is interrupted or
            // abandoned.
            patience: 0,
            dropping: Vec::new(),
            kept: Vec::new(),
            budget: 0,
            looked_at: 0,
            limit,
            obstacle: None,
        }
    }
    /// From now on operations of several vCPUs come between the parts of one.
    pub(super) fn expect_several_vcpus(&mut self) {
        self.patience = PATIENCE;
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
    /// The operation that validates `top` stops, and is to be issued again.
    pub(super) fn suspend(&mut self, top: Top) {
        if self.kept.is_empty() {
            return;
        }
        if self.unfinished.len() >= UNFINISHED
            && let Some(oldest) = self.unfinished.pop_front()
        {
            self.dropping.extend(oldest.kept);
        }
        self.unfinished.push_back(Unfinished { top, kept: std::mem::take(&mut self.kept) });
    }
    /// The operation that validates `top` begins, or is issued again.
    pub(super) fn resume(&mut self, top: Top) {
        if let Some(at) = self.unfinished.iter().position(|unfinished| unfinished.top == top)
            && let Some(Unfinished { kept, .. }) = self.unfinished.remove(at)
        {
            self.kept = kept;
            self.waits = 0;
        }
    }
    /// The operation ends: whatever it has kept is used by it, or by nobody.
    pub(super) fn give_up_own(&mut self) {
        self.dropping.append(&mut self.kept);
    }
    /// An operation is refused, as far as it knows.
    pub(super) fn refused(&mut self) -> Others {
        if self.unfinished.is_empty() {
            return Others::Nothing;
        }
        if self.waits < self.patience {
            self.waits += 1;
            return Others::Unfinished;
        }
        self.waits = 0;
        for unfinished in self.unfinished.drain(..) {
            self.dropping.extend(unfinished.kept);
        }
        Others::GivenUp
    }
    /// The frames that the lists hold a type reference to.
    #[cfg(test)]
    pub(super) fn parked(&self) -> impl Iterator<Item = Mfn> {
        let others = self.unfinished.iter().flat_map(|unfinished| &unfinished.kept);
        others.chain(&self.kept).chain(&self.dropping).copied()
    }
}
