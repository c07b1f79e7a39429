//! What is needed to handle one exit of a bare guest.

use iced_x86::Instruction;

use super::bus::Bus;
use super::death::Death;
use super::history::FaultHistory;
use crate::exec::deliver::{Origin, Undelivered};
use crate::exec::executor::Executor;
use crate::x86::decode::{Dialect, instruction_at};
use crate::x86::exception::Exception;

/// All that handling one exit may touch.
pub(super) struct ExitHandler<'a> {
    pub exec: Executor<'a, Bus<'a>>,
    pub history: &'a mut FaultHistory,
}

impl ExitHandler<'_> {
    /// The instruction at RIP; `None` where the guest's memory holds none.
    pub fn decode(&self) -> Option<Instruction> {
        let (bus, user) = (&self.exec.outside, self.exec.cpu.user);
        instruction_at(self.exec.regs.rip, Dialect::Intel, |va, buf| bus.fetch(va, buf, user))
    }

    /// Why the guest ends, after an event that could not be delivered.
    fn death_of(&self, undelivered: Undelivered<Death>) -> Death {
        match undelivered {
            Undelivered::Machine(death) => death,
            Undelivered::TripleFault { vector } => Death::TripleFault {
                vector,
                rip: self.exec.regs.rip,
                cr2: self.exec.cpu.cr2,
                rsp: self.exec.regs.rsp,
                idt: self.exec.cpu.idt.base,
            },
        }
    }

    /// Sets RIP to `next`, and raises #DB if single-stepping is on.
    pub fn advance(&mut self, next: u64) -> Result<(), Death> {
        self.exec.advance(next).map_err(|e| self.death_of(e))
    }

    /// Delivers an event through the guest's IDT.
    pub fn deliver(&mut self, event: Exception, origin: Origin) -> Result<(), Death> {
        self.exec.deliver(event, origin).map_err(|e| self.death_of(e))
    }
}
