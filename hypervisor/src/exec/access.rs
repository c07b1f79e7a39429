//! The guest's memory by linear address, as an instruction or the CPU itself accesses it.
//!
//! Both pages of a crossing access are looked up before a byte moves, so that a fault leaves nothing half
//! done. What lies outside the guest's memory is the platform's to answer for.

use super::cpu::VirtualCpu;
use super::exception::Stop;
use super::fault::FaultHistory;
use crate::bare::platform::Platform;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, PAGE_SIZE};
use crate::mmu::log::TableLog;
use crate::mmu::shadow::{LookupError, Shadow};
use crate::mmu::space::VcpuSpace;
use crate::x86::exception::Exception;
use crate::x86::registers::Regs;
use crate::x86::walk::Access;

/// All that handling one exit may touch.
pub(crate) struct Trap<'a> {
    pub cpu: &'a mut VirtualCpu,
    pub shadow: &'a mut Shadow,
    pub platform: &'a mut Platform,
    pub history: &'a mut FaultHistory,
    pub regs: &'a mut Regs,
    pub mem: &'a MachineMemory,
    pub log: &'a mut TableLog,
    pub space: &'a mut VcpuSpace,
    pub now_ns: u64,
}

/// With whose rights memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// The running code's.
    Current,
    /// The CPU's own accesses to descriptor tables, the TSS and the kernel's stack.
    System,
}

/// Where an access goes.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// To memory.
    Memory(Maddr),
    /// To the bus, at this guest-physical address: a device, or nothing.
    Bus(u64),
}

/// What a store went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stored {
    /// Memory like any other.
    Memory,
    /// Where there is none.
    Bus,
    /// A page table in use.
    Table,
}

/// The largest access: longer than any instruction's, so that two pages are enough.
const MAX_ACCESS: usize = 64;

impl Trap<'_> {
    fn lookup(&self, va: u64, write: bool, rights: Rights) -> Result<Place, Stop> {
        let user = self.cpu.user && rights == Rights::Current;
        match self.shadow.lookup(self.mem, va, Access { write, user, fetch: false }) {
            Ok(found) => Ok(found.maddr().map_or(Place::Bus(found.physical()), Place::Memory)),
            Err(LookupError::PageFault(code)) => Err(Exception::page(code, va).into()),
            Err(LookupError::NotCanonical) => Err(Exception::protection(0).into()),
        }
    }

    /// The one or two pieces of an access, each within a page: machine address and length.
    fn pieces(&self, va: u64, len: usize, write: bool, rights: Rights) -> Result<[(Place, usize); 2], Stop> {
        debug_assert!(len <= MAX_ACCESS);
        let in_first = (PAGE_SIZE - va % PAGE_SIZE).min(len as u64);
        let first = self.lookup(va, write, rights)?;
        let rest = len - in_first as usize;
        let second = if rest == 0 { first } else { self.lookup(va.wrapping_add(in_first), write, rights)? };
        Ok([(first, in_first as usize), (second, rest)])
    }

    /// Reads guest memory into `buf`.
    pub fn read(&mut self, va: u64, buf: &mut [u8], rights: Rights) -> Result<(), Stop> {
        let [(first, len), (second, _)] = self.pieces(va, buf.len(), false, rights)?;
        let (head, tail) = buf.split_at_mut(len);
        for (at, part) in [(first, head), (second, tail)].into_iter().filter(|(_, part)| !part.is_empty()) {
            match at {
                Place::Memory(at) => self.mem.read(at, part).map_err(|e| not_memory(e, va))?,
                Place::Bus(at) => self.platform.memory_in(at, part),
            }
        }
        Ok(())
    }

    /// Stores `bytes` into guest memory.
    pub fn write(&mut self, va: u64, bytes: &[u8], rights: Rights) -> Result<Stored, Stop> {
        let [(first, len), (second, _)] = self.pieces(va, bytes.len(), true, rights)?;
        let (head, tail) = bytes.split_at(len);
        let mut stored = Stored::Memory;
        for (at, part) in [(first, head), (second, tail)].into_iter().filter(|(_, part)| !part.is_empty()) {
            stored = stored.max(match at {
                Place::Bus(at) => {
                    self.platform.memory_out(at, part);
                    Stored::Bus
                }
                Place::Memory(at) => match self.shadow.store(self.mem, self.log, at, part) {
                    Ok(true) => Stored::Table,
                    Ok(false) => Stored::Memory,
                    Err(e) => return Err(not_memory(e, va)),
                },
            });
        }
        Ok(stored)
    }

    /// Reads a value of `size` (1, 2, 4 or 8) bytes.
    pub fn read_value(&mut self, va: u64, size: usize, rights: Rights) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..size).ok_or(Exception::undefined())?;
        self.read(va, part, rights)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Stores the low `size` (1, 2, 4 or 8) bytes of `value`.
    pub fn write_value(&mut self, va: u64, size: usize, value: u64, rights: Rights) -> Result<Stored, Stop> {
        let bytes = value.to_le_bytes();
        let part = bytes.get(..size).ok_or(Exception::undefined())?;
        self.write(va, part, rights)
    }

    /// Whether a store at `va` would fault now, without making one.
    pub fn probe_write(&mut self, va: u64, size: usize, rights: Rights) -> Result<(), Stop> {
        self.pieces(va, size, true, rights).map(|_| ())
    }
}

/// A lookup only yields memory, so that this does not happen; if it did, a guest would see a fault.
fn not_memory(_: BadMachineAddress, va: u64) -> Stop {
    Exception::page(0, va).into()
}
