//! CPUID, where a paravirtual guest asks the hypervisor for it.
//!
//! CPUID does not trap at CPL 3, so the guest puts a prefix before it (public/arch-x86/xen.h): UD2 and the letters
//! "xen". The hypervisor's own leaves are in public/arch-x86/cpuid.h.

use std::arch::x86_64::CpuidResult;

use iced_x86::Mnemonic;
use paravane_abi::cpuid::*;
use paravane_abi::version::make_version;

use super::decode;
use super::outcome::{Ended, ExceptionOutcome, finish};
use crate::host::host_cpuid;
use crate::ledger::{Cause, PrivOp};
use crate::pv::context::PvContext;
use crate::pv::guest_pointer::GuestPtr;
use crate::x86::control::cr4;
use crate::x86::guest_cpuid::{Dynamic, LEAF1_EDX_MACHINE_CHECKS, for_guest};

/// How the guest executed CPUID.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// With the emulation prefix.
    ByPrefix,
    /// Without it, where CPUID traps.
    Natively,
}

/// The width of machine addresses in bits: enough for the memory of any engine.
const MACHINE_ADDRESS_WIDTH: u32 = 40;
/// The MSR that takes the address of a hypercall page.
pub(super) const HYPERCALL_PAGE_MSR: u32 = 0x4000_0000;

/// Emulates CPUID with its prefix; `None` if RIP is at something else.
pub(super) fn forced(cx: &mut PvContext<'_>) -> Option<ExceptionOutcome> {
    let rip = cx.vcpu.regs.rip;
    if cx.guest().read(GuestPtr::new(rip)) != Ok(XEN_EMULATE_PREFIX) {
        return None;
    }
    let insn = decode::at(cx, rip.wrapping_add(XEN_EMULATE_PREFIX.len() as u64))?;
    if insn.mnemonic() != Mnemonic::Cpuid {
        return None;
    }
    answer(cx, Asked::ByPrefix);
    finish(cx, &insn, Ended::Done);
    Some(Cause::PrivilegedInstruction(PrivOp::Cpuid).into())
}

/// CPUID without the prefix.
pub(super) fn emulate(cx: &mut PvContext<'_>) {
    answer(cx, Asked::Natively);
}

fn answer(cx: &mut PvContext<'_>, asked: Asked) {
    let regs = &cx.vcpu.regs;
    let (function, index) = ((regs.rax & 0xffff_ffff) as u32, (regs.rcx & 0xffff_ffff) as u32);
    let r = leaf(cx, function, index, shows_osxsave(cx, asked));
    let regs = &mut cx.vcpu.regs;
    (regs.rax, regs.rbx, regs.rcx, regs.rdx) = (r.eax.into(), r.ebx.into(), r.ecx.into(), r.edx.into());
}

/// Whether leaf 1 shows OSXSAVE, where the processor has XSAVE at all.
///
/// A kernel that uses the prefix always sees it, whatever its CR4 is: Xen does so, and Linux takes a clear bit to mean
/// that XSAVE must not be used (`guest_cpuid` in Xen's arch/x86/cpuid.c has the history).
fn shows_osxsave(cx: &PvContext<'_>, asked: Asked) -> bool {
    cx.vcpu.control.cr4 & cr4::OSXSAVE != 0 || asked == Asked::ByPrefix && cx.vcpu.kernel_mode
}

fn leaf(cx: &PvContext<'_>, function: u32, index: u32, osxsave: bool) -> CpuidResult {
    let beyond = XEN_CPUID_FIRST_LEAF + XEN_CPUID_MAX_NUM_LEAVES;
    match function {
        XEN_CPUID_FIRST_LEAF..0x8000_0000 if function <= beyond => {
            hypervisor(cx, function - XEN_CPUID_FIRST_LEAF, index)
        }
        _ => {
            let dynamic = Dynamic { osxsave, xcr0: cx.vcpu.control.xcr0 };
            let mut answer = for_guest(function, index, dynamic, host_cpuid::xcr0(), host_cpuid::query);
            if function == 1 {
                // `msr.rs` emulates their registers.
                answer.edx |= LEAF1_EDX_MACHINE_CHECKS;
            }
            answer
        }
    }
}

/// The hypervisor's leaves, by their offset from the first.
fn hypervisor(cx: &PvContext<'_>, number: u32, index: u32) -> CpuidResult {
    let none = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    match (number, index) {
        (0, _) => CpuidResult {
            eax: XEN_CPUID_FIRST_LEAF + XEN_CPUID_MAX_NUM_LEAVES,
            ebx: XEN_CPUID_SIGNATURE_EBX,
            ecx: XEN_CPUID_SIGNATURE_ECX,
            edx: XEN_CPUID_SIGNATURE_EDX,
        },
        (XEN_CPUID_LEAF_VERSION, _) => {
            let (major, minor) = crate::pv::hypercall::VERSION;
            CpuidResult { eax: make_version(major, minor), ..none }
        }
        (XEN_CPUID_LEAF_HYPERCALL, _) => CpuidResult {
            eax: 1,
            ebx: HYPERCALL_PAGE_MSR,
            ecx: XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD,
            edx: 0,
        },
        // The TSC is the host's own: not emulated.
        (XEN_CPUID_LEAF_TSC, 0) => CpuidResult { ecx: khz(cx), ..none },
        (XEN_CPUID_LEAF_TSC, 1) => {
            let time = cx.domain.clock.published(0);
            let [low, high] = halves(cx.domain.clock.guest_tsc_at_zero().wrapping_neg());
            let shift = i32::from(time.tsc_shift).cast_unsigned() & 0xff;
            CpuidResult { eax: low, ebx: high, ecx: time.tsc_to_system_mul, edx: shift }
        }
        (XEN_CPUID_LEAF_TSC, 2) => CpuidResult { eax: khz(cx), ..none },
        (XEN_CPUID_LEAF_PV, _) => CpuidResult { ebx: MACHINE_ADDRESS_WIDTH, ..none },
        _ => none,
    }
}

fn khz(cx: &PvContext<'_>) -> u32 {
    u32::try_from(cx.domain.facts.tsc_khz).unwrap_or(u32::MAX)
}

fn halves(value: u64) -> [u32; 2] {
    [(value & 0xffff_ffff) as u32, (value >> 32) as u32]
}
