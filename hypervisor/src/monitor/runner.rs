//! One virtual CPU, as the loop sees it.
//!
//! A technique implements [`Runner`]. What concerns the whole domain (how it ended, its devices) is not here: the loop
//! has no use for it.

use super::inspect::Inspect;
use crate::autopsy::{Testimony, Witness};
use crate::engine::{Cpu, Exit};
use crate::ledger::{Cause, Ledger};
use crate::machine::memory::MachineMemory;
use crate::x86::registers::Regs;

/// What the virtual CPU is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run the guest, until this system time at the latest.
    Run(Option<u64>),
    /// Wait for an event, until this system time at the latest.
    Wait(Option<u64>),
    /// Nothing more: the domain's life is over.
    End,
}

/// What an exit turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handled {
    /// Its cause, for the ledger.
    pub cause: Cause,
    /// The value that the guest wrote to the mark port, if that is what the exit was.
    pub mark: Option<u8>,
}

impl From<Cause> for Handled {
    fn from(cause: Cause) -> Self {
        Self { cause, mark: None }
    }
}

/// A virtual CPU of a domain. All methods are called on its own thread.
pub trait Runner {
    /// Its registers.
    fn regs(&self) -> &Regs;
    /// The memory of its domain.
    fn memory(&self) -> &MachineMemory;
    /// Called once, before anything else, on its own thread: what the engine must know before the first entry.
    fn begin(&mut self, _cpu: &mut dyn Cpu) {}
    /// Hands the virtual CPU's state over to be saved with the domain. It is out of the guest, and no exit is to be
    /// handled.
    fn save(&mut self, _cpu: &mut dyn Cpu) {}
    /// Runs the guest until it stops.
    fn enter(&mut self, cpu: &mut dyn Cpu) -> Exit;
    /// The address of the guest's code that the guest was left at by `exit`, which has not been handled yet: RIP, or
    /// for a call through a page of stubs, where the stub was called from. Whoever wants to know asks once, and before
    /// [`Runner::handle`].
    fn place(&mut self, _exit: Exit) -> u64 {
        self.regs().rip
    }
    /// Does what the exit means.
    fn handle(&mut self, exit: Exit) -> Handled;
    /// Fires the timers that are due, delivers what is pending, and says what to do next.
    fn prepare(&mut self) -> Next;
    /// The guest is about to be entered, and system time is `now`. Called before each entry: it must cost next to
    /// nothing.
    fn about_to_run(&mut self, now: u64);
    /// Somebody kicked: console input may have come, or a device may have completed something.
    fn woken(&mut self);
    /// What it is doing, for people; `None` if there is nothing to say of it.
    fn witness(&mut self) -> Option<Witness> {
        let testimony = Testimony { regs: *self.regs(), ..Testimony::default() };
        Some(Witness::new(testimony, &mut |_| None))
    }
    /// The account of its exits.
    fn ledger(&mut self) -> &mut Ledger;
    /// Itself, for a debugger; `None` where its technique has no place for one.
    fn inspect(&mut self) -> Option<&mut dyn Inspect> {
        None
    }
}
