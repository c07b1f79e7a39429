//! What a debugger is told of a bare guest whose code runs as it is, and may change of it.

use super::super::method::Method;
use super::BareDomain;
use crate::machine::end::DomainEnd;
use crate::machine::memory::{Maddr, Mfn, PAGE_SIZE};
use crate::monitor::inspect::{Inspect, Question, Unwritable};
use crate::x86::registers::{Regs, SystemRegisters};

impl<M: Method> Inspect for BareDomain<M> {
    fn regs_mut(&mut self) -> &mut Regs {
        &mut self.regs
    }

    fn system(&self) -> SystemRegisters {
        self.machine.system_registers()
    }

    fn translate(&self, va: u64) -> Option<Maddr> {
        self.machine.translate(&self.memory, va)
    }

    /// What the shadow has made of a table would not follow.
    fn write(&mut self, at: Maddr, bytes: &[u8]) -> Result<(), Unwritable> {
        let pfn = self.memory.mfn_to_pfn(at.mfn()).ok_or(Unwritable::NotTheGuests)?;
        if at.offset() + bytes.len() as u64 > PAGE_SIZE {
            return Err(Unwritable::NotTheGuests);
        }
        if self.machine.is_shadowed(pfn) {
            return Err(Unwritable::Table);
        }
        Ok(self.memory.write(at, bytes)?)
    }

    fn bad_end(&self) -> Option<String> {
        match self.end.as_ref()? {
            DomainEnd::PowerOff | DomainEnd::Reboot | DomainEnd::Suspend | DomainEnd::Interrupted => None,
            end @ (DomainEnd::GuestCrash | DomainEnd::Watchdog | DomainEnd::Killed(_)) => {
                Some(end.to_string())
            }
        }
    }

    fn answer(&self, question: Question) -> String {
        match question {
            Question::Doing => self.machine.doing().to_owned(),
            Question::Events => "a bare kernel has no event channels\n".to_owned(),
            Question::P2m(pfn) => match self.memory.pfn_to_mfn(pfn) {
                Some(mfn) => format!("frame {pfn:#x} of the PC is mfn {:#x}\n", mfn.0),
                None => format!("the PC has no frame {pfn:#x}\n"),
            },
            Question::Frame(mfn) => self.frame(mfn),
        }
    }
}

impl<M: Method> BareDomain<M> {
    fn frame(&self, mfn: u64) -> String {
        let Some(pfn) = self.memory.mfn_to_pfn(Mfn(mfn)) else {
            return format!("mfn {mfn:#x} is not the guest's\n");
        };
        let what = if self.machine.is_shadowed(pfn) {
            "a page table that is shadowed: its stores trap"
        } else {
            "no page table in use"
        };
        format!("mfn {mfn:#x}, frame {pfn:#x} of the PC: {what}\n")
    }
}
