//! Page faults: the guest's own, the shadow's, stores to page tables, and device memory.

use paravane_abi::addr::is_hypervisor;

use super::bus::{Bus, exception_of};
use super::death::Death;
use super::handler::ExitHandler;
use super::history::{HOPELESS, SUSPICIOUS};
use crate::exec::ordinary::Progress;
use crate::exec::outside::{Attempt, Incomplete};
use crate::ledger::Cause;
use crate::machine::memory::Maddr;
use crate::mmu::shadow::{Fill, Lookup, OverlayFill};
use crate::x86::exception::page_error::{FETCH, WRITE};
use crate::x86::exception::{Exception, Fault};
use crate::x86::walk::Access;

/// Why the shadow does not let the guest store to a frame.
enum Protection {
    None,
    Table,
    Code,
}

impl<'a> ExitHandler<'a> {
    /// Handles a page fault. An exception in the result is for the guest to handle.
    pub fn page_fault(&mut self, fault: Fault) -> Attempt<Cause, Bus<'a>> {
        let va = fault.address;
        let access = Access {
            write: fault.error_code & WRITE != 0,
            user: self.exec.cpu.user,
            fetch: fault.error_code & FETCH != 0,
        };
        if !access.user
            && let Some(cause) = self.overlay_fault(va, access)?
        {
            return Ok(cause);
        }
        let bus = &self.exec.outside;
        let found = bus.shadow.lookup(bus.mem, va, access).map_err(|fault| exception_of(fault, va))?;
        if is_hypervisor(va) {
            return Err(Incomplete::Machine(Death::ReservedRange { rip: self.exec.regs.rip, address: va }));
        }
        match found.maddr() {
            // An empty bus reads all ones, which is not a valid instruction.
            None if access.fetch => Err(Exception::undefined().into()),
            None => self.device_access(va, found.physical(), access.write),
            Some(at) => match self.protection(at) {
                Protection::Table if access.write => {
                    self.history.filled();
                    self.table_store(va, at)
                }
                Protection::Code if access.write => {
                    self.history.filled();
                    self.code_store(va, at)
                }
                _ => self.fill(va, &found),
            },
        }
    }

    fn protection(&self, at: Maddr) -> Protection {
        let bus = &self.exec.outside;
        match bus.mem.mfn_to_pfn(at.mfn()) {
            Some(pfn) if bus.shadow.is_table(pfn) => Protection::Table,
            Some(pfn) if bus.shadow.is_code(pfn) => Protection::Code,
            _ => Protection::None,
        }
    }

    /// A fault of the kernel on a page of ours, where it maps nothing; `None` if the fault has another reason.
    fn overlay_fault(&mut self, va: u64, access: Access) -> Attempt<Option<Cause>, Bus<'a>> {
        let bus = &mut self.exec.outside;
        match bus.shadow.fill_overlay(bus.mem, bus.log, bus.space, va, access) {
            OverlayFill::NotOurs => return Ok(None),
            // Before the next entry the overlay moves, and the guest tries again.
            OverlayFill::Filled | OverlayFill::Collides => self.history.filled(),
            OverlayFill::Spurious => self.spurious(va)?,
        }
        Ok(Some(Cause::ShadowFill))
    }

    fn fill(&mut self, va: u64, found: &Lookup) -> Attempt<Cause, Bus<'a>> {
        let bus = &mut self.exec.outside;
        match bus.shadow.fill(bus.mem, bus.log, bus.space, va, found) {
            Fill::Filled => self.history.filled(),
            Fill::Spurious => self.spurious(va)?,
        }
        Ok(Cause::ShadowFill)
    }

    /// A fault on a page that the shadow lets the guest access.
    fn spurious(&mut self, va: u64) -> Attempt<(), Bus<'a>> {
        match self.history.count_spurious(va) {
            // Not in user mode: on the process engine a program can forge faults.
            HOPELESS.. if !self.exec.cpu.user => {
                Err(Incomplete::Machine(Death::NoProgress { rip: self.exec.regs.rip, address: va }))
            }
            SUSPICIOUS.. => {
                self.exec.outside.log.invalidate_all();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A store to code from which something was made.
    fn code_store(&mut self, va: u64, at: Maddr) -> Attempt<Cause, Bus<'a>> {
        if self.emulate_memory()? == Progress::Unknown {
            // The instruction is not implemented: let its store through. Nothing that was made from the frame stays.
            let bus = &mut self.exec.outside;
            if bus.shadow.release_code(bus.mem, at).is_err() {
                return Err(Incomplete::Machine(Death::UnknownStore {
                    rip: self.exec.regs.rip,
                    address: va,
                }));
            }
        }
        Ok(Cause::CodeWrite)
    }

    fn table_store(&mut self, va: u64, at: Maddr) -> Attempt<Cause, Bus<'a>> {
        if self.emulate_memory()? != Progress::Unknown {
            self.history.emulated();
            return Ok(Cause::PageTableStore);
        }
        // The instruction is not implemented: let its store through, by dropping what the shadow derived from this
        // table. If the instruction needs the table for its own addresses, it faults here again, and the guest ends.
        let rip = self.exec.regs.rip;
        let again = self.history.releases_again(rip, va);
        let bus = &mut self.exec.outside;
        if again || !bus.shadow.release(bus.mem, bus.log, at) {
            return Err(Incomplete::Machine(Death::UnknownStore { rip, address: va }));
        }
        Ok(Cause::PageTableStore)
    }

    fn device_access(&mut self, va: u64, at: u64, write: bool) -> Attempt<Cause, Bus<'a>> {
        let owner = self.exec.outside.platform.memory_owner(at, write);
        match self.emulate_memory()? {
            Progress::Unknown => {
                Err(Incomplete::Machine(Death::UnknownDeviceAccess { rip: self.exec.regs.rip, address: va }))
            }
            _ => Ok(Cause::Mmio(owner)),
        }
    }

    fn emulate_memory(&mut self) -> Attempt<Progress, Bus<'a>> {
        let Some(insn) = self.decode() else { return Ok(Progress::Unknown) };
        let progress = self.exec.operands().execute(&insn)?;
        if progress == Progress::Done {
            self.advance(insn.next_ip()).map_err(Incomplete::Machine)?;
        }
        Ok(progress)
    }
}
