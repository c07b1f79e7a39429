//! What a bare kernel's CPU reaches: its memory and page tables through the shadow, and its PC.
//!
//! For an access that crosses a page boundary both pages are looked up before a byte moves, so that a fault leaves
//! nothing half done. Accesses outside of the guest's memory go to the platform.

use std::arch::x86_64::CpuidResult;

use super::death::Death;
use super::platform::{Platform, PlatformEvent};
use crate::exec::outside::{
    Attempt, CpuFeatures, Incomplete, IoPorts, MAX_ACCESS, Memory, PageTables, Stored,
};
use crate::exec::virtual_cpu::VirtualCpu;
use crate::host::host_cpuid;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, PAGE_SIZE};
use crate::mmu::log::TableLog;
use crate::mmu::shadow::{BadRoot, Controls, LookupError, Shadow, View};
use crate::mmu::space::{Flush, VcpuSpace};
use crate::x86::control::{cr0, efer};
use crate::x86::exception::Exception;
use crate::x86::guest_cpuid::{Dynamic, available, for_guest};
use crate::x86::walk::Access;

/// What is outside of the virtual CPU while one exit is handled.
pub(super) struct Bus<'a> {
    pub shadow: &'a mut Shadow,
    pub platform: &'a mut Platform,
    pub mem: &'a MachineMemory,
    pub log: &'a mut TableLog,
    pub space: &'a mut VcpuSpace,
    pub now_ns: u64,
}

/// Where an access goes.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// To memory.
    Memory(Maddr),
    /// To the bus, at this guest-physical address: a device, or nothing.
    Bus(u64),
}

impl Bus<'_> {
    fn lookup(&self, va: u64, write: bool, user: bool) -> Attempt<Place, Self> {
        match self.shadow.lookup(self.mem, va, Access { write, user, fetch: false }) {
            Ok(found) => Ok(found.maddr().map_or(Place::Bus(found.physical()), Place::Memory)),
            Err(fault) => Err(exception_of(fault, va).into()),
        }
    }

    /// The one or two pieces of an access, each within a page: where it is and how long.
    fn pieces(&self, va: u64, len: usize, write: bool, user: bool) -> Attempt<[(Place, usize); 2], Self> {
        debug_assert!(len <= MAX_ACCESS);
        let in_first = (PAGE_SIZE - va % PAGE_SIZE).min(len as u64);
        let first = self.lookup(va, write, user)?;
        let rest = len - in_first as usize;
        let second = if rest == 0 { first } else { self.lookup(va.wrapping_add(in_first), write, user)? };
        Ok([(first, in_first as usize), (second, rest)])
    }

    /// Reads code of the running privilege level, within one page.
    pub fn fetch(&self, va: u64, buf: &mut [u8], user: bool) -> Option<()> {
        let access = Access { write: false, user, fetch: true };
        let at = self.shadow.lookup(self.mem, va, access).ok()?.maddr()?;
        self.shadow.read(self.mem, at, buf).ok()
    }
}

/// The exception that a lookup at `va` raises.
pub(super) fn exception_of(fault: LookupError, va: u64) -> Exception {
    match fault {
        LookupError::PageFault(code) => Exception::page(code, va),
        LookupError::NotCanonical => Exception::protection(0),
    }
}

impl Memory for Bus<'_> {
    type Failure = Death;

    fn read(&mut self, va: u64, buf: &mut [u8], user: bool) -> Attempt<(), Self> {
        let [(first, len), (second, _)] = self.pieces(va, buf.len(), false, user)?;
        let (head, tail) = buf.split_at_mut(len);
        for (at, part) in [(first, head), (second, tail)].into_iter().filter(|(_, part)| !part.is_empty()) {
            match at {
                Place::Memory(at) => self.shadow.read(self.mem, at, part).map_err(|e| not_memory(e, va))?,
                Place::Bus(at) => self.platform.memory_in(at, part),
            }
        }
        Ok(())
    }

    fn write(&mut self, va: u64, bytes: &[u8], user: bool) -> Attempt<Stored, Self> {
        let [(first, len), (second, _)] = self.pieces(va, bytes.len(), true, user)?;
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

    fn probe_write(&mut self, va: u64, len: usize, user: bool) -> Attempt<(), Self> {
        self.pieces(va, len, true, user).map(drop)
    }
}

/// Cannot happen, because a lookup yields memory only; if it did, the guest would see a page fault.
fn not_memory(_: BadMachineAddress, va: u64) -> Incomplete<Death> {
    Exception::page(0, va).into()
}

impl IoPorts for Bus<'_> {
    type Event = PlatformEvent;

    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        self.platform.port_in(port, size, self.now_ns)
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Option<PlatformEvent> {
        self.platform.port_out(port, size, value, self.now_ns)
    }
}

/// The shadow that belongs to the privilege level.
pub(super) fn view(cpu: &VirtualCpu) -> View {
    if cpu.user { View::User } else { View::Kernel }
}

/// The control bits that change how page tables are read.
pub(super) fn controls(cpu: &VirtualCpu) -> Controls {
    Controls { write_protect: cpu.cr0 & cr0::WP != 0, no_execute: cpu.efer & efer::NXE != 0 }
}

impl PageTables for Bus<'_> {
    fn activate(&mut self, cpu: &VirtualCpu) -> Result<(), Death> {
        self.shadow
            .activate(self.mem, self.log, self.space, cpu.cr3, view(cpu), controls(cpu))
            .map_err(|BadRoot(root)| Death::BadRoot(root))
    }

    fn flush_page(&mut self, va: u64) {
        self.space.flush(Flush::Page(va));
    }

    fn flush_all(&mut self) {
        self.space.flush(Flush::All);
    }
}

impl CpuFeatures for Bus<'_> {
    fn cpuid(&self, function: u32, index: u32, osxsave: bool) -> CpuidResult {
        // XCR0 stays the engine's, with all components that it has.
        let dynamic = Dynamic { osxsave, xcr0: u64::MAX };
        for_guest(function, index, dynamic, host_cpuid::xcr0(), host_cpuid::query)
    }

    fn available_state(&self) -> u64 {
        available(host_cpuid::xcr0())
    }
}
