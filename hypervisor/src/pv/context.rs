//! A vCPU at work in its domain: what hypercalls, exceptions and events act on.
//!
//! The vCPU belongs to the thread that runs it, the domain to all of its vCPUs. Everything here runs on the vCPU's own
//! thread, between two entries into the guest; nothing is signal-safe.

use super::access::GuestMemory;
use super::domain::PvDomain;
use super::event::upcall::Upcall;
use super::vcpu::PvVcpu;
use crate::machine::end::DomainEnd;

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
        self.domain.upcalls.of(self.vcpu.id)
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
