//! Virtual interrupts, which a guest binds to event channels.
//!
//! Some exist once per vCPU; the others exist once per domain, and are first bound to vCPU 0. Source: public/xen.h.

/// Per vCPU: a timer expired.
pub const VIRQ_TIMER: u32 = 0;
/// Per vCPU: a request to print debugging information.
pub const VIRQ_DEBUG: u32 = 1;
/// Initial domain: input on the hypervisor's console.
pub const VIRQ_CONSOLE: u32 = 2;
/// Initial domain: a domain changed state.
pub const VIRQ_DOM_EXC: u32 = 3;
/// Initial domain: trace records are available.
pub const VIRQ_TBUF: u32 = 4;
/// Initial domain: a domain stopped for its debugger.
pub const VIRQ_DEBUGGER: u32 = 6;
/// Per vCPU: a profiling sample.
pub const VIRQ_XENOPROF: u32 = 7;
/// Initial domain: the console ring has data.
pub const VIRQ_CON_RING: u32 = 8;
/// Initial domain: a physical processor changed state.
pub const VIRQ_PCPU_STATE: u32 = 9;
/// Initial domain: a memory event.
pub const VIRQ_MEM_EVENT: u32 = 10;
/// A message between domains.
pub const VIRQ_ARGO: u32 = 11;
/// Initial domain: the hypervisor is short of memory.
pub const VIRQ_ENOMEM: u32 = 12;
/// Per vCPU: a performance counter overflowed.
pub const VIRQ_XENPMU: u32 = 13;
/// First of the eight that an architecture defines.
pub const VIRQ_ARCH_0: u32 = 16;
/// Last of the eight that an architecture defines.
pub const VIRQ_ARCH_7: u32 = 23;
/// Number of virtual interrupts.
pub const NR_VIRQS: u32 = 24;

/// Whether a virtual interrupt exists once per vCPU. All others exist once per domain.
#[must_use]
pub const fn is_per_vcpu(virq: u32) -> bool {
    matches!(virq, VIRQ_TIMER | VIRQ_DEBUG | VIRQ_XENOPROF | VIRQ_XENPMU)
}
