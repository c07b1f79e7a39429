//! One hypercall: the domain, the vCPU that makes the call, and the arguments.

use super::PER_OPERATION;
use crate::pv::access::GuestMemory;
use crate::pv::context::PvContext;
use crate::pv::domain::PvDomain;
use crate::pv::event::upcall::Upcall;
use crate::pv::vcpu::PvVcpu;

/// A hypercall that is being performed.
pub struct Call<'a> {
    /// What all vCPUs share.
    pub domain: &'a mut PvDomain,
    /// The vCPU that makes the call.
    pub vcpu: &'a mut PvVcpu,
    /// The arguments, as they are in the registers.
    pub args: [u64; 6],
}

impl Call<'_> {
    /// The same call with other arguments, for a call that is defined as another one.
    pub fn with(&mut self, args: [u64; 6]) -> Call<'_> {
        Call { domain: self.domain, vcpu: self.vcpu, args }
    }
    /// The domain and the vCPU.
    pub fn context(&mut self) -> PvContext<'_> {
        PvContext { domain: self.domain, vcpu: self.vcpu }
    }
    /// The guest's memory in the address space that runs.
    pub fn guest(&self) -> GuestMemory<'_> {
        GuestMemory::new(&self.domain.memory, self.vcpu.space.root())
    }
    /// Where the event bits of the calling vCPU are.
    pub fn upcall(&self) -> Upcall {
        self.domain.upcalls.of(self.vcpu.id)
    }

    /// Counts `operations` more elementary operations, or what takes as long, against what this entry may do.
    pub fn spend(&mut self, operations: u64) {
        self.vcpu.budget = self.vcpu.budget.saturating_sub(operations);
    }
    /// Whether this entry has done enough, so that the rest is for the next one. Never before its first operation.
    pub fn is_spent(&mut self) -> bool {
        let tables = self.domain.mmu.take_looked_at() / PER_OPERATION;
        self.spend(tables);
        self.vcpu.budget == 0
    }
}
