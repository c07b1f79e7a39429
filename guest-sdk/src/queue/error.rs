//! The error of a flush.
#![forbid(unsafe_code)]

use core::fmt;

use paravane_abi::mmu::MmuUpdate;
use paravane_abi::{Errno, hypercall};

/// A queued call failed. The calls after it were made nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueError {
    /// The hypercall's number.
    pub number: u64,
    /// The hypervisor's answer.
    pub errno: Errno,
    /// For a list of updates or extended operations: how many were done before the one that failed.
    pub done: u32,
    /// The page-table update that failed, if it was one.
    pub update: Option<MmuUpdate>,
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = hypercall::name(self.number).unwrap_or("unknown hypercall");
        write!(f, "the hypervisor refused a queued {name}: {}", self.errno)?;
        match self.update {
            Some(u) => write!(f, ", setting the entry at machine address {:#x} to {:#x}", u.maddr(), u.val),
            None if self.done > 0 => write!(f, ", after {} of its operations", self.done),
            None => Ok(()),
        }
    }
}

impl core::error::Error for QueueError {}
