//! A virtual CPU that stands still, as a debugger sees it.
//!
//! A technique whose guests can be debugged implements [`Inspect`] beside [`Runner`](super::Runner). Everything here is
//! called on the virtual CPU's own thread, between two entries. What is read of page tables is not believed: an address
//! that they yield is one of the guest's own memory, or there is none.

use crate::machine::memory::{BadMachineAddress, Maddr};
use crate::x86::registers::{Regs, SystemRegisters};

/// Memory that a debugger may not write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    /// It belongs to the hypervisor.
    #[error("this is not the guest's memory")]
    NotTheGuests,
    /// What it holds was validated: writing it would go past the checks.
    #[error("this is a page table, or a table of descriptors: only the guest's own updates change it")]
    Table,
}

impl From<BadMachineAddress> for Unwritable {
    fn from(_: BadMachineAddress) -> Self {
        Self::NotTheGuests
    }
}

/// What a debugger's user may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// What the virtual CPU is doing.
    Doing,
    /// What its event channels are, and their state.
    Events,
    /// Which machine frame is behind a pseudo-physical one.
    P2m(u64),
    /// What a machine frame is, and who uses it.
    Frame(u64),
}

/// A virtual CPU that stands still.
pub trait Inspect {
    /// Its registers, to be changed.
    fn regs_mut(&mut self) -> &mut Regs;
    /// The state beside them.
    fn system(&self) -> SystemRegisters;
    /// The memory behind a linear address, by the guest's own tables: those that it runs on, or else its kernel's.
    fn translate(&self, va: u64) -> Option<Maddr>;
    /// Writes to memory that [`Inspect::translate`] found, whatever the rights of its page. Within one page.
    ///
    /// # Errors
    /// When nobody may write there.
    fn write(&mut self, at: Maddr, bytes: &[u8]) -> Result<(), Unwritable>;
    /// Why the domain's life is over, if it did not end of its own will.
    fn bad_end(&self) -> Option<String>;
    /// The answer, in lines.
    fn answer(&self, question: Question) -> String;
}
