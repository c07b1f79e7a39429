//! Privileged instructions other than those of ports and MSRs.
//!
//! CLI and STI do nothing: the upcall mask is in memory, and emulating them would not help, because the POPF that
//! restores the flag does not trap. HLT, INVLPG, LGDT and the rest raise #GP, as on Xen: there are hypercalls in their
//! place.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::outcome::{Ended, ExceptionOutcome, PROTECTION, UNDEFINED};
use super::{cpuid, decode, msr, port};
use crate::exec::operand::{read_register, write_register};
use crate::host::host_cpuid;
use crate::ledger::{Cause, PrivOp};
use crate::machine::memory::Maddr;
use crate::mmu::direct::Stop;
use crate::pv::context::PvContext;
use crate::pv::debug_registers;
use crate::pv::vcpu::CR4_FIXED;
use crate::x86::control::{cr0, cr4};
use crate::x86::guest_cpuid::{XCR0_FIRST, available, is_consistent};

/// CR0 without TS, as guests on Xen find it: PG, AM, WP, NE, ET, MP, PE.
const CR0: u64 = cr0::PG | cr0::AM | cr0::WP | cr0::NE | cr0::ET | cr0::MP | cr0::PE;

/// Executes an instruction; `None` if the guest gets its #GP.
pub(super) fn instruction(cx: &mut PvContext<'_>, insn: &Instruction) -> Option<(PrivOp, Ended)> {
    match insn.mnemonic() {
        Mnemonic::Cli if cx.vcpu.io.level >= port::level_needed(cx) => {
            return Some((PrivOp::Cli, Ended::Done));
        }
        Mnemonic::Sti if cx.vcpu.io.level >= port::level_needed(cx) => {
            return Some((PrivOp::Sti, Ended::Done));
        }
        Mnemonic::Rdtsc if !tsc_is_disabled(cx) => {
            let tsc = crate::machine::time::rdtsc().wrapping_add(cx.domain.clock.tsc_offset());
            let regs = &mut cx.vcpu.regs;
            (regs.rax, regs.rdx) = (tsc & 0xffff_ffff, tsc >> 32);
            return Some((PrivOp::Other, Ended::Done));
        }
        Mnemonic::Rdtscp if !tsc_is_disabled(cx) => {
            let tsc = crate::machine::time::rdtsc().wrapping_add(cx.domain.clock.tsc_offset());
            let aux = cx.vcpu.control.tsc_aux.into();
            let regs = &mut cx.vcpu.regs;
            (regs.rax, regs.rdx, regs.rcx) = (tsc & 0xffff_ffff, tsc >> 32, aux);
            return Some((PrivOp::Other, Ended::Done));
        }
        Mnemonic::Cpuid => {
            cpuid::emulate(cx);
            return Some((PrivOp::Cpuid, Ended::Done));
        }
        // The rest is for the kernel only.
        _ if !cx.vcpu.kernel_mode => return None,
        _ => {}
    }
    Some(match insn.mnemonic() {
        Mnemonic::Mov => return mov(cx, insn),
        Mnemonic::Clts => {
            cx.vcpu.set_task_switched(false);
            (PrivOp::Clts, Ended::Done)
        }
        // Caches are coherent, so this has no effect that a kernel could see. Kernels do it in timing loops.
        Mnemonic::Wbinvd => (PrivOp::Wbinvd, Ended::Done),
        Mnemonic::Rdmsr => (PrivOp::Rdmsr, msr::read(cx)?),
        Mnemonic::Wrmsr => (PrivOp::Wrmsr, msr::write(cx)?),
        Mnemonic::Xsetbv => (PrivOp::Xsetbv, xsetbv(cx)),
        _ => return None,
    })
}

/// Allows XSAVE and its kin to a kernel that has not set CR4.OSXSAVE: on Xen they work, because Xen has set the real
/// bit. `None` if the instruction is undefined for another reason.
pub(super) fn extended_state(cx: &mut PvContext<'_>) -> Option<ExceptionOutcome> {
    use Mnemonic::*;
    let control = &cx.vcpu.control;
    let hidden = control.cr4 & cr4::OSXSAVE == 0 && !control.xsave_in_use;
    if !hidden || !cx.vcpu.kernel_mode || available(host_cpuid::xcr0()) == 0 {
        return None;
    }
    let insn = decode::at_rip(cx)?;
    let ours = matches!(
        insn.mnemonic(),
        Xgetbv | Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xrstor | Xrstor64
    );
    ours.then(|| {
        cx.vcpu.control.xsave_in_use = true;
        cx.vcpu.allow_instructions();
        Cause::PrivilegedInstruction(PrivOp::Other).into()
    })
}

/// Whether CR4.TSD keeps the running mode from reading the counter: the kernel always may.
fn tsc_is_disabled(cx: &PvContext<'_>) -> bool {
    !cx.vcpu.kernel_mode && cx.vcpu.control.cr4 & cr4::TSD != 0
}

/// MOV to and from control and debug registers.
fn mov(cx: &mut PvContext<'_>, insn: &Instruction) -> Option<(PrivOp, Ended)> {
    if insn.op0_kind() != OpKind::Register || insn.op1_kind() != OpKind::Register {
        return None;
    }
    let (to, from) = (insn.op0_register(), insn.op1_register());
    if from.is_cr() {
        let value = read_control(cx, from)?;
        write_register(&mut cx.vcpu.regs, to, value);
        return Some((PrivOp::MovFromCr, Ended::Done));
    }
    if to.is_cr() {
        let value = read_register(&cx.vcpu.regs, from);
        return Some((PrivOp::MovToCr, write_control(cx, to, value)?));
    }
    let ended = if from.is_dr() {
        let value = debug_registers::read(cx.vcpu, number(from)?).ok()?;
        write_register(&mut cx.vcpu.regs, to, value);
        Ended::Done
    } else if to.is_dr() {
        let value = read_register(&cx.vcpu.regs, from);
        debug_registers::write(cx.vcpu, number(to)?, value).ok()?;
        Ended::Done
    } else {
        return None;
    };
    Some((PrivOp::MovDr, ended))
}

fn number(register: Register) -> Option<u32> {
    u32::try_from(register.number()).ok()
}

fn read_control(cx: &PvContext<'_>, register: Register) -> Option<u64> {
    let control = &cx.vcpu.control;
    Some(match register {
        Register::CR0 => CR0 | if control.task_switched { cr0::TS } else { 0 },
        Register::CR2 => control.cr2,
        Register::CR3 => cx.vcpu.tables.kernel_root().maddr().0,
        Register::CR4 => control.cr4,
        _ => return None,
    })
}

/// Sets a control register; `None` if the value is refused. Of CR0 only TS can change.
fn write_control(cx: &mut PvContext<'_>, register: Register, value: u64) -> Option<Ended> {
    match register {
        Register::CR0 if value & !cr0::TS == CR0 => cx.vcpu.set_task_switched(value & cr0::TS != 0),
        Register::CR2 => cx.set_cr2(value),
        Register::CR3 => return new_root(cx, value),
        Register::CR4 => {
            cx.vcpu.control.cr4 = CR4_FIXED | value & changeable();
            cx.vcpu.allow_instructions();
        }
        _ => return None,
    }
    Some(Ended::Done)
}

/// The bits of CR4 that a guest can change: TSD, DE, and FSGSBASE and OSXSAVE where CPUID shows the feature. Writes to
/// the others are ignored.
fn changeable() -> u64 {
    let optional = |have: bool, bit: u64| if have { bit } else { 0 };
    cr4::TSD
        | cr4::DE
        | optional(host_cpuid::has_fsgsbase(), cr4::FSGSBASE)
        | optional(available(host_cpuid::xcr0()) != 0, cr4::OSXSAVE)
}

/// What a guest can have in its control registers on this host.
#[derive(Clone, Copy, Debug)]
pub struct Settable {
    /// The bits of CR4 beside those that are always set.
    pub cr4: u64,
    xcr0: u64,
}

impl Settable {
    /// Whether XCR0 can be this.
    pub fn is_xcr0(self, value: u64) -> bool {
        value == XCR0_FIRST || is_consistent(value) && value & !self.xcr0 == 0
    }
}

/// What a guest can have in its control registers on this host.
pub fn state_a_guest_may_set() -> Settable {
    Settable { cr4: changeable(), xcr0: available(host_cpuid::xcr0()) }
}

/// MOV to CR3 is MMUEXT_NEW_BASEPTR.
fn new_root(cx: &mut PvContext<'_>, value: u64) -> Option<Ended> {
    let op = paravane_abi::mmu::MmuextOp {
        cmd: paravane_abi::mmu::MMUEXT_NEW_BASEPTR,
        arg1: Maddr(value).mfn().0,
        ..Default::default()
    };
    match cx.domain.mmu.mmuext_one(
        &cx.domain.memory,
        &mut cx.domain.log,
        &mut cx.vcpu.space,
        &mut cx.vcpu.tables,
        &op,
    ) {
        Ok(()) => Some(Ended::Done),
        Err(Stop::Restart) => Some(Ended::Again),
        Err(Stop::Refused(_)) => None,
    }
}

/// Sets the guest's XCR0. On engines that cannot load it the host's stays in effect.
fn xsetbv(cx: &mut PvContext<'_>) -> Ended {
    if cx.vcpu.control.cr4 & cr4::OSXSAVE == 0 {
        return Ended::Fault(UNDEFINED);
    }
    let regs = &cx.vcpu.regs;
    let value = regs.rdx << 32 | regs.rax & 0xffff_ffff;
    let available = available(host_cpuid::xcr0());
    if regs.rcx & 0xffff_ffff != 0 || !is_consistent(value) || value & !available != 0 {
        return Ended::Fault(PROTECTION);
    }
    cx.vcpu.control.xcr0 = value;
    cx.vcpu.allow_instructions();
    Ended::Done
}
