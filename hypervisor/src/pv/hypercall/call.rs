//! One hypercall: the domain, the vCPU that makes the call, and the arguments.

use super::{PER_OPERATION, low32};
use crate::pv::access::GuestMemory;
use crate::pv::context::PvContext;
use crate::pv::domain::PvDomain;
use crate::pv::event::upcall::Upcall;
use crate::pv::guest_pointer::GuestPtr;
use crate::pv::vcpu::PvVcpu;

/// An argument, as it is in its register: what it means is for the call to say.
#[derive(Clone, Copy)]
pub struct Arg(pub u64);

impl Arg {
    /// The whole register.
    pub fn word(self) -> u64 {
        self.0
    }
    /// The low 32 bits, for what the ABI defines as an `unsigned int`.
    pub fn low32(self) -> u32 {
        low32(self.0)
    }
    /// A pointer to a `T` of the guest's.
    pub fn pointer<T>(self) -> GuestPtr<T> {
        GuestPtr::new(self.0)
    }
}

/// A hypercall that is being performed.
pub struct Call<'a> {
    /// What all vCPUs share.
    pub domain: &'a mut PvDomain,
    /// The vCPU that makes the call.
    pub vcpu: &'a mut PvVcpu,
    /// The arguments.
    pub args: [Arg; 6],
}

impl Call<'_> {
    /// The same call with other arguments, for a call that is defined as another one.
    pub fn with(&mut self, args: [u64; 6]) -> Call<'_> {
        Call { domain: self.domain, vcpu: self.vcpu, args: args.map(Arg) }
    }
    /// The arguments as they are in the registers: to issue the same call again.
    pub fn raw(&self) -> [u64; 6] {
        self.args.map(Arg::word)
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
        self.domain.bells.of(self.vcpu.id)
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
