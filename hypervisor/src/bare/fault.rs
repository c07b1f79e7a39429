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
use crate::mmu::shadow::{Fill, Lookup};
use crate::x86::exception::page_error::{FETCH, WRITE};
use crate::x86::exception::{Exception, Fault};
use crate::x86::walk::Access;

impl<'a> ExitHandler<'a> {
    /// Handles a page fault. An exception in the result is for the guest to handle.
    pub fn page_fault(&mut self, fault: Fault) -> Attempt<Cause, Bus<'a>> {
        let va = fault.address;
        let access = Access {
            write: fault.error_code & WRITE != 0,
            user: self.exec.cpu.user,
            fetch: fault.error_code & FETCH != 0,
        };
        let bus = &self.exec.outside;
        let found = bus.shadow.lookup(bus.mem, va, access).map_err(|fault| exception_of(fault, va))?;
        if is_hypervisor(va) {
            return Err(Incomplete::Machine(Death::ReservedRange { rip: self.exec.regs.rip, address: va }));
        }
        match found.maddr() {
            // An empty bus reads all ones, which is not a valid instruction.
            None if access.fetch => Err(Exception::undefined().into()),
            None => self.device_access(va, found.physical(), access.write),
            Some(at) if access.write && self.is_table(at) => {
                self.history.filled();
                self.table_store(va, at)
            }
            Some(_) => self.fill(va, &found),
        }
    }

    fn is_table(&self, at: Maddr) -> bool {
        let bus = &self.exec.outside;
        bus.mem.mfn_to_pfn(at.mfn()).is_some_and(|pfn| bus.shadow.is_table(pfn))
    }

    fn fill(&mut self, va: u64, found: &Lookup) -> Attempt<Cause, Bus<'a>> {
        let bus = &mut self.exec.outside;
        match bus.shadow.fill(bus.mem, bus.log, bus.space, va, found) {
            Fill::Filled => self.history.filled(),
            Fill::Spurious => match self.history.count_spurious(va) {
                // Not in user mode: on the process engine a program can forge faults.
                HOPELESS.. if !self.exec.cpu.user => {
                    return Err(Incomplete::Machine(Death::NoProgress {
                        rip: self.exec.regs.rip,
                        address: va,
                    }));
                }
                SUSPICIOUS.. => bus.log.invalidate_all(),
                _ => {}
            },
        }
        Ok(Cause::ShadowFill)
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
