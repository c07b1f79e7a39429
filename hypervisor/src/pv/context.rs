//! A vCPU at work in its domain: what hypercalls, exceptions and events act on.
//!
//! The vCPU belongs to the thread that runs it, the domain to all of its vCPUs. Everything here runs on the vCPU's own
//! thread, between two entries into the guest; nothing is signal-safe.

use paravane_abi::event::EvtchnPort;

use super::access::GuestMemory;
use super::domain::PvDomain;
use super::event::upcall::Upcall;
use super::vcpu::PvVcpu;
use crate::machine::end::DomainEnd;
use crate::machine::memory::BadMachineAddress;

/// A domain and the vCPU of it that runs.
pub struct PvContext<'a> {
    /// What all vCPUs share.
    pub domain: &'a mut PvDomain,
    /// The vCPU that runs.
    pub vcpu: &'a mut PvVcpu,
}

impl PvContext<'_> {
    /// The same context, for a part of its lifetime.
    pub fn reborrow(&mut self) -> PvContext<'_> {
        PvContext { domain: self.domain, vcpu: self.vcpu }
    }

    /// The guest's memory in the address space that runs.
    pub fn guest(&self) -> GuestMemory<'_> {
        GuestMemory::new(&self.domain.memory, self.vcpu.space.root())
    }
    /// The guest's memory in its kernel's address space, whatever runs.
    pub fn kernel_memory(&self) -> GuestMemory<'_> {
        GuestMemory::new(&self.domain.memory, self.vcpu.tables.kernel_root())
    }
    /// Where this vCPU's event bits are.
    pub fn upcall(&self) -> Upcall {
        self.domain.bells.of(self.vcpu.id)
    }

    /// Sets a port pending, and notifies the vCPU that it is for.
    ///
    /// # Errors
    /// When there is no such port, or no shared page.
    pub fn raise(&self, port: EvtchnPort) -> Result<(), BadMachineAddress> {
        self.domain.bells.raise(port, Some(self.vcpu.id))
    }

    /// Tells the guest the date if that has changed, at system time `now`.
    pub fn follow_wall_clock(&mut self, now: u64) {
        if let Err(error) = self.domain.follow_wall_clock(now) {
            self.kill(error);
        }
    }

    /// Ends the domain because it broke a rule; `what` says which. The guest's RIP is added to the message.
    ///
    /// The one place where a guest is killed for what it did.
    pub fn kill(&mut self, what: impl std::fmt::Display) {
        if self.domain.end.is_none() {
            self.domain.end = Some(DomainEnd::Killed(format!("{what} at rip {:#x}", self.vcpu.regs.rip)));
        }
    }
}
