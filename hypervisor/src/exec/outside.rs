//! What an instruction reaches outside of the CPU's registers: memory, ports, page tables, CPUID.
//!
//! A machine implements these traits; everything else in this room is generic over them.

use std::arch::x86_64::CpuidResult;

use super::virtual_cpu::VirtualCpu;
use crate::x86::exception::Exception;

/// Why an instruction did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incomplete<F> {
    /// It raised an exception; nothing that it changed is visible.
    Exception(Exception),
    /// The machine cannot execute it, for a reason of its own.
    Machine(F),
}

impl<F> From<Exception> for Incomplete<F> {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

impl<F> Incomplete<F> {
    /// For an access to the stack: a non-canonical address raises #SS instead of #GP.
    pub(crate) fn on_stack(self) -> Self {
        match self {
            Self::Exception(e) if e == Exception::protection(0) => Exception::stack(0).into(),
            other => other,
        }
    }
}

/// The result of a step of an instruction on the machine `M`.
pub(crate) type Attempt<T, M> = Result<T, Incomplete<<M as Memory>::Failure>>;

/// What a store went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stored {
    /// Memory to which the guest could have stored natively.
    Memory,
    /// A device, or nothing.
    Bus,
    /// A page table in use.
    Table,
}

/// The longest access that [`Memory`] is asked for, in bytes: two pages are always enough.
pub(crate) const MAX_ACCESS: usize = 64;

/// The guest's memory by linear address.
///
/// An access that faults has no effect, even where it crosses into an inaccessible page from an accessible one.
pub(crate) trait Memory {
    /// Why the machine cannot make an access, apart from exceptions.
    type Failure;

    /// Reads into `buf`, with the rights of user mode or of the kernel.
    fn read(&mut self, va: u64, buf: &mut [u8], user: bool) -> Attempt<(), Self>;

    /// Stores `bytes`.
    fn write(&mut self, va: u64, bytes: &[u8], user: bool) -> Attempt<Stored, Self>;

    /// Whether a store of `len` bytes would fault now, without making one.
    fn probe_write(&mut self, va: u64, len: usize, user: bool) -> Attempt<(), Self>;
}

/// The I/O ports.
pub(crate) trait IoPorts {
    /// What an output can request of the monitor, such as power-off.
    type Event;

    /// Reads `size` (1, 2 or 4) bytes.
    fn port_in(&mut self, port: u16, size: u8) -> u32;

    /// Writes the low `size` (1, 2 or 4) bytes of `value`.
    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Option<Self::Event>;
}

/// Translations of linear addresses.
pub(crate) trait PageTables: Memory {
    /// Switches to the tables that CR3 names, under the current control registers and privilege level.
    fn activate(&mut self, cpu: &VirtualCpu) -> Result<(), Self::Failure>;

    /// Drops the cached translation of a linear address, which is canonical.
    fn flush_page(&mut self, va: u64);

    /// Drops all cached translations.
    fn flush_all(&mut self);
}

/// The features that the CPU reports.
pub(crate) trait CpuFeatures {
    /// CPUID's answer for this leaf and sub-leaf; `osxsave` is CR4.OSXSAVE.
    fn cpuid(&self, function: u32, index: u32, osxsave: bool) -> CpuidResult;

    /// The bits that XCR0 may have.
    fn available_state(&self) -> u64;
}

/// Everything that an [`Executor`](super::executor::Executor) needs of its machine.
pub(crate) trait Surroundings: Memory + IoPorts + PageTables + CpuFeatures {}

impl<M: Memory + IoPorts + PageTables + CpuFeatures> Surroundings for M {}
