//! Loads of segment registers, and transfers to another code segment, that the guest's descriptor tables allow and the
//! host's do not.
//!
//! A guest uses its own descriptor table and the hypervisor's flat selectors behind it (0xe023, 0xe02b, 0xe033). Where
//! the processor runs on a table of the host, loading one of these raises #GP with the selector as error code. The load
//! is then emulated here, by the guest's tables; what they refuse raises #GP, #NP or #SS in the guest. Loads that the
//! host's table allows never get here (`docs/abi.md`, "Selectors").
//!
//! Checks and their order: SDM vol. 2, MOV, POP, LDS (LSS, LFS, LGS), IRET, RET, CALL and JMP, at CPL 3.
//! 32-bit code segments are refused: see `load_code` in `pv/selectors.rs`.

use iced_x86::{Code, Instruction, Mnemonic, Register};
use paravane_abi::addr::is_canonical;
use paravane_abi::trap::{PFEC_WRITE, TRAP_DEBUG, TRAP_GP_FAULT, TRAP_STACK_ERROR};
use zerocopy::IntoBytes;

use super::decode;
use super::msr;
use super::outcome::{ExceptionOutcome, PROTECTION};
use crate::exec::operand::{linear_address, read_register, write_register};
use crate::ledger::{Cause, PrivOp};
use crate::pv::context::PvContext;
use crate::x86::decode::Dialect;
use crate::x86::descriptor::{RPL, error_of};
use crate::x86::exception::Fault;
use crate::x86::rflags;
use crate::x86::sensitive::Class;

/// Emulates the instruction that raised #GP with a selector as error code, or raises the exception that follows from
/// the guest's own tables. `None` if it loads no segment.
pub(super) fn load(cx: &mut PvContext<'_>) -> Option<ExceptionOutcome> {
    let insn = at_rip(cx)?;
    let op = kind(&insn)?;
    let stepping = cx.vcpu.regs.rflags & rflags::TF != 0;
    let carried_out = match op {
        PrivOp::Iretq => interrupt_return(cx, &insn),
        PrivOp::FarReturn if insn.mnemonic() == Mnemonic::Retf => far_return(cx, &insn),
        PrivOp::FarReturn => far_branch(cx, &insn),
        _ => load_register(cx, &insn),
    };
    match carried_out {
        Err(fault) => cx.deliver_fault(fault),
        // A load of SS defers a single step until after the next instruction (SDM vol. 3, 6.8.3).
        Ok(()) if stepping && !loads_stack(&insn) => {
            cx.deliver_fault(Fault { vector: TRAP_DEBUG, error_code: 0, address: 0 });
        }
        Ok(()) => {}
    }
    Some(Cause::PrivilegedInstruction(op).into())
}

/// AMD's processors have no 64-bit form of far pointers: REX.W is ignored there.
fn at_rip(cx: &PvContext<'_>) -> Option<Instruction> {
    let dialect = if msr::is_amd() { Dialect::Amd } else { Dialect::Intel };
    decode::in_dialect(cx, cx.vcpu.regs.rip, dialect)
}

fn kind(insn: &Instruction) -> Option<PrivOp> {
    match Class::of(insn)? {
        Class::LoadSegment => Some(PrivOp::SegmentLoad),
        Class::InterruptReturn => Some(PrivOp::Iretq),
        Class::FarTransfer => Some(PrivOp::FarReturn),
        _ => None,
    }
}

fn loads_stack(insn: &Instruction) -> bool {
    insn.mnemonic() == Mnemonic::Mov && insn.op0_register() == Register::SS
}

/// MOV, POP, LFS, LGS, LSS.
fn load_register(cx: &mut PvContext<'_>, insn: &Instruction) -> Result<(), Fault> {
    let regs = &cx.vcpu.regs;
    let (register, selector, pointer) = match insn.mnemonic() {
        Mnemonic::Pop => (insn.op0_register(), read(cx, regs.rsp, 2).map_err(on_stack)? as u16, None),
        Mnemonic::Mov if insn.op1_register() != Register::None => {
            (insn.op0_register(), read_register(regs, insn.op1_register()) as u16, None)
        }
        Mnemonic::Mov => (insn.op0_register(), read(cx, address(cx, insn, 1)?, 2)? as u16, None),
        loads_pointer => {
            let register = match loads_pointer {
                Mnemonic::Lfs => Register::FS,
                Mnemonic::Lgs => Register::GS,
                _ => Register::SS,
            };
            let (offset, selector) = far_pointer(cx, insn, 1)?;
            (register, selector, Some(offset))
        }
    };
    if register == Register::SS {
        cx.load_stack(selector)?;
        cx.vcpu.regs.selectors.ss = selector;
    } else {
        let base = cx.load_data(selector)?;
        let regs = &mut cx.vcpu.regs;
        // 64-bit code does not use the bases of the other two.
        match register {
            Register::DS => regs.selectors.ds = selector,
            Register::ES => regs.selectors.es = selector,
            Register::FS => (regs.selectors.fs, regs.fs_base) = (selector, base),
            _ => (regs.selectors.gs, regs.gs_base) = (selector, base),
        }
    }
    let regs = &mut cx.vcpu.regs;
    if let Some(offset) = pointer {
        write_register(regs, insn.op0_register(), offset);
    }
    if insn.mnemonic() == Mnemonic::Pop {
        regs.rsp = regs.rsp.wrapping_add_signed(insn.stack_pointer_increment().into());
    }
    regs.rip = insn.next_ip();
    regs.rflags &= !rflags::RF;
    Ok(())
}

/// IRET, which in 64-bit mode always pops RSP and SS too. It stays at CPL 3.
fn interrupt_return(cx: &mut PvContext<'_>, insn: &Instruction) -> Result<(), Fault> {
    let size = match insn.code() {
        Code::Iretq => 8,
        Code::Iretd => 4,
        _ => 2,
    };
    let [rip, cs, flags, rsp, ss] = words::<5>(cx, cx.vcpu.regs.rsp, size)?;
    let (cs, ss) = (cs as u16, ss as u16);
    check_target(cx, rip, cs)?;
    cx.load_stack(ss)?;
    // With 16-bit operands the upper half of the flags stays.
    let loaded = rflags::LOADED_AT_CPL3 & if size == 2 { 0xffff } else { u64::MAX };
    (cx.vcpu.regs.selectors.cs, cx.vcpu.regs.selectors.ss) = (cs, ss);
    let regs = &mut cx.vcpu.regs;
    regs.rflags = regs.rflags & !loaded | flags & loaded;
    (regs.rip, regs.rsp) = (rip, rsp);
    Ok(())
}

/// Far RET.
fn far_return(cx: &mut PvContext<'_>, insn: &Instruction) -> Result<(), Fault> {
    let size = match insn.code() {
        Code::Retfq | Code::Retfq_imm16 => 8,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 2,
    };
    let [rip, cs] = words::<2>(cx, cx.vcpu.regs.rsp, size)?;
    let cs = cs as u16;
    check_target(cx, rip, cs)?;
    let popped = insn.stack_pointer_increment();
    cx.vcpu.regs.selectors.cs = cs;
    let regs = &mut cx.vcpu.regs;
    regs.rsp = regs.rsp.wrapping_add_signed(popped.into());
    (regs.rip, regs.rflags) = (rip, regs.rflags & !rflags::RF);
    Ok(())
}

/// Checks the target of a return: 64-bit code at CPL 3, and a canonical address.
fn check_target(cx: &PvContext<'_>, rip: u64, cs: u16) -> Result<(), Fault> {
    // First, other than for a null selector, which has an error code of its own: not to a more privileged level.
    if cs > RPL && cs & RPL != RPL {
        return Err(Fault { vector: TRAP_GP_FAULT, error_code: error_of(cs), address: 0 });
    }
    cx.load_code(cs)?;
    if is_canonical(rip) { Ok(()) } else { Err(PROTECTION) }
}

/// Far CALL and JMP through a pointer in memory, the only ones in 64-bit mode.
fn far_branch(cx: &mut PvContext<'_>, insn: &Instruction) -> Result<(), Fault> {
    let (rip, selector) = far_pointer(cx, insn, 0)?;
    cx.load_code(selector)?;
    if !is_canonical(rip) {
        return Err(PROTECTION);
    }
    if insn.is_call_far_indirect() {
        let size = pointer_size(insn);
        let frame = [insn.next_ip(), cx.vcpu.regs.selectors.cs.into()];
        push(cx, &frame, size)?;
    }
    // CS keeps the current privilege level, whatever the selector's is.
    cx.vcpu.regs.selectors.cs = selector | RPL;
    let regs = &mut cx.vcpu.regs;
    (regs.rip, regs.rflags) = (rip, regs.rflags & !rflags::RF);
    Ok(())
}

/// Bytes of the offset in a far pointer operand.
fn pointer_size(insn: &Instruction) -> usize {
    insn.memory_size().size().saturating_sub(2)
}

/// The offset and the selector of a far pointer in memory.
fn far_pointer(cx: &PvContext<'_>, insn: &Instruction, operand: u32) -> Result<(u64, u16), Fault> {
    let (at, size) = (address(cx, insn, operand)?, pointer_size(insn));
    let offset = read(cx, at, size)?;
    Ok((offset, read(cx, at.wrapping_add(size as u64), 2)? as u16))
}

fn address(cx: &PvContext<'_>, insn: &Instruction, operand: u32) -> Result<u64, Fault> {
    linear_address(&cx.vcpu.regs, insn, operand).ok_or(PROTECTION)
}

/// The `size` bytes at `va`, at most 8.
fn read(cx: &PvContext<'_>, va: u64, size: usize) -> Result<u64, Fault> {
    let mut word = 0u64;
    let bytes = word.as_mut_bytes().get_mut(..size).unwrap_or_default();
    cx.guest().read_bytes(va, bytes).map_err(|_| cx.guest().fault_at(va, size, 0))?;
    Ok(word)
}

/// `N` words of `size` bytes from the stack.
fn words<const N: usize>(cx: &PvContext<'_>, rsp: u64, size: usize) -> Result<[u64; N], Fault> {
    let mut words = [0; N];
    let mut at = rsp;
    for word in &mut words {
        *word = read(cx, at, size).map_err(on_stack)?;
        at = at.wrapping_add(size as u64);
    }
    Ok(words)
}

/// Pushes two words of `size` bytes, the first at the lower address.
fn push(cx: &mut PvContext<'_>, words: &[u64; 2], size: usize) -> Result<(), Fault> {
    let mut bytes = [0u8; 16];
    for (slot, word) in bytes.chunks_mut(size.max(1)).zip(words) {
        for (to, from) in slot.iter_mut().zip(word.to_le_bytes()) {
            *to = from;
        }
    }
    let len = 2 * size;
    let rsp = cx.vcpu.regs.rsp.wrapping_sub(len as u64);
    let frame = bytes.get(..len).unwrap_or_default();
    cx.guest().write_bytes(rsp, frame).map_err(|_| on_stack(cx.guest().fault_at(rsp, len, PFEC_WRITE)))?;
    cx.vcpu.regs.rsp = rsp;
    Ok(())
}

/// An access to the stack at a non-canonical address raises #SS.
fn on_stack(fault: Fault) -> Fault {
    if fault == PROTECTION { Fault { vector: TRAP_STACK_ERROR, ..PROTECTION } } else { fault }
}
