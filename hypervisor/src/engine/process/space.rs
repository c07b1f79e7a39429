//! An address space of the guest: the process that has it, and what is to be done to it before it runs.

use super::child::Child;
use super::mirror::Batch;
use super::spoilt::Remnants;
use crate::machine::memory::Mfn;

/// One guest process and the page-table root that it mirrors.
#[derive(Debug)]
pub(super) struct Space {
    pub child: Child,
    /// The L4 frame whose translations it holds; `None` while it is free for another.
    pub root: Option<Mfn>,
    /// Calls for its mapper.
    pub batch: Batch,
    /// Mappings that it has, or will have after the batch.
    pub runs: u32,
    /// When it was last entered, in entries.
    pub last_used: u64,
    /// FS.base and GS.base as they are in the process; `None` if that is not known.
    pub bases: Option<(u64, u64)>,
    /// What its room may hold.
    pub remnants: Remnants,
}

impl Space {
    pub fn new(child: Child) -> Self {
        Self {
            child,
            root: None,
            batch: Batch::default(),
            runs: 0,
            last_used: 0,
            bases: None,
            remnants: Remnants::None,
        }
    }
    /// Lets the guest run, its mappings brought up to date first.
    pub fn resume(&mut self) {
        if self.batch.is_empty() {
            self.child.resume();
        } else {
            self.batch.finish(self.child.area());
            self.child.resume_after_batch();
        }
    }
}
