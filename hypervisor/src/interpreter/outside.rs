//! What the interpreter asks of the machine around the processor.

use std::arch::x86_64::CpuidResult;

use crate::exec::virtual_cpu::VirtualCpu;
use crate::machine::memory::Maddr;
use crate::x86::exception::Exception;
use crate::x86::walk::Access;

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// To memory.
    Memory {
        /// The machine address.
        at: Maddr,
        /// Level of the entry that maps it: more than 1 for a large page.
        level: u8,
    },
    /// To the bus, at this guest-physical address: a device, or nothing.
    Bus(u64),
}

/// The machine: its page tables, its devices and what its processor reports.
pub(crate) trait Machine {
    /// Why it cannot go on.
    type Failure;
    /// What an output to a port can request.
    type Event;

    /// Translates a linear address by the tables in use, sets accessed and dirty bits, and checks the rights.
    fn translate(&mut self, va: u64, access: Access) -> Result<Place, Exception>;
    /// Uses the tables that the control registers name from now on.
    fn activate(&mut self, cpu: &VirtualCpu) -> Result<(), Self::Failure>;

    /// Reads where there is no memory.
    fn bus_in(&mut self, address: u64, buf: &mut [u8]);
    /// Writes where there is no memory.
    fn bus_out(&mut self, address: u64, bytes: &[u8]);
    /// IN of `size` (1, 2 or 4) bytes.
    fn port_in(&mut self, port: u16, size: u8) -> u32;
    /// OUT of `size` (1, 2 or 4) bytes.
    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Option<Self::Event>;

    /// Whether a device interrupts now; asked again after each access to a device, and when the time is up.
    fn interrupts(&mut self) -> bool;
    /// Acknowledges the interrupt that was announced; returns its vector.
    fn acknowledge(&mut self) -> u8;
    /// Whether the time has come to ask the devices again. Called once in a run of instructions.
    fn is_due(&mut self) -> bool;

    /// The time-stamp counter.
    fn time_stamp(&self) -> u64;
    /// CPUID's answer; `osxsave` is CR4.OSXSAVE.
    fn cpuid(&self, function: u32, index: u32, osxsave: bool) -> CpuidResult;
    /// How often something else than the processor has written to memory.
    fn foreign_writes(&self) -> u64;
}
