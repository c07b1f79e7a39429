//! The state of a virtual CPU that KVM keeps between exits: vector and debug registers.
//!
//! Off the exit path: each of these is a system call of its own.

use kvm_bindings::{kvm_debugregs, kvm_xsave};
use kvm_ioctls::VcpuFd;

use super::host::{self, HostKind};
use crate::engine::state::{BadState, Breakpoints, NoBreakpoints, VectorState, size_on_host};

/// The components that every x86-64 processor has: x87 and SSE.
const ALWAYS: u64 = 0b11;

/// The vector registers, as KVM_GET_XSAVE has them.
pub(super) fn save(vcpu: &VcpuFd) -> Result<VectorState, BadState> {
    let saved = vcpu.get_xsave().map_err(|_| BadState::Refused)?;
    Ok(VectorState::from_area(saved.region.iter().flat_map(|word| word.to_le_bytes()).collect()))
}

/// Sets them, of a vCPU whose XCR0 can have `components`.
pub(super) fn load(vcpu: &VcpuFd, components: u64, state: &VectorState) -> Result<(), BadState> {
    // KVM itself knows the processor's mask of MXCSR.
    state.check(components | ALWAYS, u32::MAX, size_on_host)?;
    let mut saved = kvm_xsave::default();
    for (word, bytes) in saved.region.iter_mut().zip(state.spelled_out().chunks(4)) {
        *word = bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    }
    // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 says: 4096, all of `saved`, for a guest without state
    // components that Linux grants on demand, and `x86::guest_cpuid` shows no guest any of those (AMX).
    unsafe { vcpu.set_xsave(&saved) }.map_err(|_| BadState::Refused)
}

/// Sets DR0 to DR3 and DR7.
pub(super) fn set_breakpoints(vcpu: &VcpuFd, breakpoints: &Breakpoints) -> Result<(), NoBreakpoints> {
    breakpoints.check()?;
    if breakpoints.control != 0 && host::usable_kind() == HostKind::Software {
        // It takes the registers, and no breakpoint is ever hit.
        return Err(NoBreakpoints::Absent("software KVM"));
    }
    let registers = kvm_debugregs {
        db: breakpoints.addresses,
        dr6: DR6_RESET,
        dr7: breakpoints.control | DR7_ALWAYS,
        ..Default::default()
    };
    vcpu.set_debug_regs(&registers).map_err(|_| NoBreakpoints::Refused)
}

/// The breakpoints that were met, which are then forgotten.
pub(super) fn take_debug_status(vcpu: &VcpuFd) -> u64 {
    let Ok(registers) = vcpu.get_debug_regs() else { return 0 };
    // What could be read can be written.
    let _ = vcpu.set_debug_regs(&kvm_debugregs { dr6: DR6_RESET, ..registers });
    registers.dr6 & 0b1111
}

/// DR6 and DR7 without events and without breakpoints (SDM vol. 3, 18.2.3 and 18.2.4).
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_ALWAYS: u64 = 1 << 10;
