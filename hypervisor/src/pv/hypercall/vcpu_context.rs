//! VCPUOP_initialise: the context that a vCPU begins with (public/arch-x86/xen.h, `vcpu_guest_context`).
//!
//! The structure is copied once and checked as a whole before any of it is used. Its tables may take long to validate:
//! then the call is issued again, and those that were taken already wait with the [`Peer`](crate::pv::peers::Peer).
//! What a context may hold is what the vCPU could have set itself by hypercalls, and nothing else. Its FPU state and
//! its selectors are not used: a vCPU begins with those of a reset, and with flat ones.

use paravane_abi::addr::is_canonical;
use paravane_abi::context::{
    VGCF_FAILSAFE_DISABLES_EVENTS, VGCF_IN_KERNEL, VGCF_ONLINE, VGCF_SYSCALL_DISABLES_EVENTS,
    VcpuGuestContext,
};
use paravane_abi::errno::Errno;
use paravane_abi::mmu::{MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR, MMUEXT_SET_LDT, MmuextOp};
use paravane_abi::pte;
use paravane_abi::segment::{FIRST_RESERVED_GDT_ENTRY, GDT_FRAMES};

use super::{Call, HypercallResult, Outcome, done};
use crate::machine::memory::Mfn;
use crate::mmu::direct::{Stop, VcpuTables};
use crate::mmu::space::VcpuSpace;
use crate::pv::debug_registers;
use crate::pv::event::upcall;
use crate::pv::guest_pointer::GuestPtr;
use crate::pv::vcpu::{Callback, PvVcpu, VcpuId};
use crate::x86::registers::{Regs, Selectors};
use crate::x86::rflags::{IF, IOPL, IOPL_SHIFT, VM};

/// What the copy of the structure and its checks cost, in elementary operations.
const COST: u64 = 512;

/// Gives a vCPU the context that it begins with, once.
pub(super) fn initialise(
    call: &mut Call<'_>,
    vcpu: VcpuId,
    argument: GuestPtr<VcpuGuestContext>,
) -> HypercallResult {
    if call.domain.bells.of(vcpu).vcpu_info == upcall::NOWHERE {
        return Err(Errno::EINVAL);
    }
    let context = call.guest().read(argument)?;
    call.spend(COST);
    if call.domain.peers.get(vcpu).is_none_or(|peer| peer.initialised) {
        return Err(Errno::EEXIST);
    }
    check(&context)?;
    let begun = call.domain.peers.get_mut(vcpu).and_then(|peer| peer.begun.take());
    let (mut tables, mut space) = match begun.map_or_else(|| attach(call, &context), |begun| Ok(*begun)) {
        Ok(begun) => begun,
        Err(Stop::Refused(errno)) => return Err(errno),
        Err(Stop::Restart) => return Ok(Outcome::Again(call.raw())),
    };
    match take_tables(call, &context, &mut tables, &mut space) {
        Ok(()) => {}
        Err(Stop::Refused(errno)) => {
            let domain = &mut *call.domain;
            domain.mmu.detach(&domain.memory, &mut domain.log, tables);
            return Err(errno);
        }
        Err(Stop::Restart) => {
            if let Some(peer) = call.domain.peers.get_mut(vcpu) {
                peer.begun = Some(Box::new((tables, space)));
            }
            return Ok(Outcome::Again(call.raw()));
        }
    }
    let made = made(vcpu, &context, tables, space);
    if let Some(peer) = call.domain.peers.get_mut(vcpu) {
        peer.context = Some(Box::new(made));
        peer.initialised = true;
        peer.up = context.flags & VGCF_ONLINE != 0;
        if peer.up {
            call.domain.bells.kick(vcpu);
        }
    }
    done(0)
}

/// What needs no look at the guest's memory.
fn check(context: &VcpuGuestContext) -> Result<(), Errno> {
    let addresses = [
        context.user_regs.rip,
        context.event_callback_eip,
        context.failsafe_callback_eip,
        context.syscall_callback_eip,
        context.fs_base,
        context.gs_base_kernel,
        context.gs_base_user,
    ];
    let handlers = context.trap_ctxt.iter().map(|trap| trap.address);
    let in_user_mode = context.flags & VGCF_IN_KERNEL == 0;
    let [_, user_root, _, kernel_root, ..] = context.ctrlreg;
    if addresses.into_iter().chain(handlers).any(|address| !is_canonical(address))
        || kernel_root == 0
        || in_user_mode && frame(user_root) == Mfn(0)
        || context.gdt_ents > FIRST_RESERVED_GDT_ENTRY.into()
    {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// The frame in CR3: above bit 12, of which Xen's 64-bit form uses no more than a machine has.
fn frame(cr3: u64) -> Mfn {
    Mfn(pte::mfn(cr3))
}

/// Takes the kernel's root for a vCPU that has none.
fn attach(call: &mut Call<'_>, context: &VcpuGuestContext) -> Result<(VcpuTables, VcpuSpace), Stop> {
    let [_, _, _, root, ..] = context.ctrlreg;
    let domain = &mut *call.domain;
    let tables = domain.mmu.attach(&domain.memory, &mut domain.log, frame(root))?;
    Ok((tables, VcpuSpace::new(frame(root), &domain.log)))
}

/// Takes all tables of the context, in place of those that an interrupted call has taken: each costs nothing if it is
/// the same.
fn take_tables(
    call: &mut Call<'_>,
    context: &VcpuGuestContext,
    tables: &mut VcpuTables,
    space: &mut VcpuSpace,
) -> Result<(), Stop> {
    let [_, user_root, _, kernel_root, ..] = context.ctrlreg;
    let domain = &mut *call.domain;
    let (memory, log) = (&domain.memory, &mut domain.log);
    let op = |cmd, arg1, arg2| MmuextOp { cmd, arg1, arg2, ..Default::default() };
    for op in [
        op(MMUEXT_NEW_BASEPTR, frame(kernel_root).0, 0),
        // Frame 0 is none: the vCPU has no program then.
        op(MMUEXT_NEW_USER_BASEPTR, frame(user_root).0, 0),
        op(MMUEXT_SET_LDT, context.ldt_base, context.ldt_ents),
    ] {
        domain.mmu.mmuext_one(memory, log, space, tables, &op)?;
    }
    let entries = u32::try_from(context.gdt_ents).map_err(|_| Errno::EINVAL)?;
    let frames = context.gdt_frames.get(..GDT_FRAMES).unwrap_or_default();
    domain.mmu.set_gdt(memory, log, space, tables, frames, entries)
}

/// The vCPU, about to run its first instruction.
fn made(id: VcpuId, context: &VcpuGuestContext, tables: VcpuTables, space: VcpuSpace) -> PvVcpu {
    let user = &context.user_regs;
    let in_kernel = context.flags & VGCF_IN_KERNEL != 0;
    let (gs_base, other_gs_base) = match in_kernel {
        true => (context.gs_base_kernel, context.gs_base_user),
        false => (context.gs_base_user, context.gs_base_kernel),
    };
    let regs = Regs {
        rax: user.rax,
        rbx: user.rbx,
        rcx: user.rcx,
        rdx: user.rdx,
        rsi: user.rsi,
        rdi: user.rdi,
        rsp: user.rsp,
        rbp: user.rbp,
        r8: user.r8,
        r9: user.r9,
        r10: user.r10,
        r11: user.r11,
        r12: user.r12,
        r13: user.r13,
        r14: user.r14,
        r15: user.r15,
        rip: user.rip,
        rflags: user.rflags & !(IOPL | VM) | IF,
        fs_base: context.fs_base,
        gs_base,
        selectors: Selectors::FLAT,
    };
    let root = if in_kernel { Some(tables.kernel_root()) } else { tables.user_root() };
    let mut vcpu = PvVcpu::new(id, regs, space, tables);
    if let Some(root) = root {
        vcpu.space.set_root(root);
    }
    vcpu.kernel_mode = in_kernel;
    vcpu.space.set_user_mode(!in_kernel);
    vcpu.other_gs_base = other_gs_base;
    vcpu.kernel_sp = context.kernel_sp;
    vcpu.io.level = (user.rflags >> IOPL_SHIFT & 3) as u8;
    // By place: what the entries say of their vectors is for the table of set_trap_table alone.
    vcpu.traps = context.trap_ctxt;
    let callback = |address, mask_events| Callback { address, mask_events };
    vcpu.event = callback(context.event_callback_eip, true);
    vcpu.failsafe =
        callback(context.failsafe_callback_eip, context.flags & VGCF_FAILSAFE_DISABLES_EVENTS != 0);
    vcpu.syscall = callback(context.syscall_callback_eip, context.flags & VGCF_SYSCALL_DISABLES_EVENTS != 0);
    for (number, value) in (0..).zip(context.debugreg) {
        // What a guest may not set stays as it is, as on Xen.
        let _ = debug_registers::write(&mut vcpu, number, value);
    }
    vcpu.allow_instructions();
    vcpu
}
