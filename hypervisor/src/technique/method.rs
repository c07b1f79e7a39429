//! How the code of a bare kernel is brought to run at CPL 3.
//!
//! Trap-and-emulate runs it as it is. Patching and translation run code of their own in its place: before an entry they
//! turn the guest's state into what the engine is to run, and after an exit back. In between everything is the guest's
//! own, so that what handles its exits and delivers its interrupts is the same for all of them.
//!
//! What may not be done here: knowing an engine.

use crate::bare::BareMachine;
use crate::engine::Exit;
use crate::ledger::{Cause, Ledger};
use crate::machine::memory::MachineMemory;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::x86::registers::Regs;

/// A bare guest, between an exit and an entry.
pub(super) struct Guest<'a> {
    /// Its machine.
    pub machine: &'a mut BareMachine,
    /// Its registers.
    pub regs: &'a mut Regs,
    /// Its memory.
    pub memory: &'a MachineMemory,
    /// The log of page-table writes.
    pub log: &'a mut TableLog,
    /// The virtual CPU's address space.
    pub space: &'a mut VcpuSpace,
    /// For amounts that are no exits.
    pub ledger: &'a mut Ledger,
}

/// What an exit was.
pub(super) enum Left {
    /// The guest's own, to be handled as any.
    Exit(Exit),
    /// A call out of code of ours: the instruction at RIP is to be executed.
    Callout,
    /// The method's own: it has been dealt with.
    Own(Cause),
}

/// How the code of a bare kernel is brought to run at CPL 3.
pub(super) trait Method {
    /// Whether it is an exit when the guest changes its interrupt flag.
    const NOTICES_STI: bool;
    /// Whether what runs is the kernel's own code, at the addresses that the kernel knows: a debugger can follow it.
    const RUNS_THE_KERNELS_CODE: bool = false;

    /// The guest's state becomes what the engine is to run.
    fn before_entry(&mut self, guest: &mut Guest<'_>);

    /// What the engine left becomes the guest's state.
    fn after_exit(&mut self, exit: Exit, guest: &mut Guest<'_>) -> Left;

    /// The guest's own exit, of the instruction at `rip`, was handled and had this cause; `exit` is what it was if it was
    /// one of the engine's.
    fn handled(&mut self, _rip: u64, _exit: Exit, _cause: Cause, _guest: &mut Guest<'_>) {}
}

/// The kernel's code runs as it is.
pub(super) struct Unchanged;

impl Method for Unchanged {
    const NOTICES_STI: bool = true;
    const RUNS_THE_KERNELS_CODE: bool = true;

    fn before_entry(&mut self, _: &mut Guest<'_>) {}

    fn after_exit(&mut self, exit: Exit, _: &mut Guest<'_>) -> Left {
        Left::Exit(exit)
    }
}
