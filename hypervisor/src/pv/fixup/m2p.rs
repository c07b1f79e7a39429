//! The machine-to-physical table at the address that Xen's headers have for it, where the engine cannot map it there.
//!
//! A guest that does not ask for the table's place (XENMEM_machphys_mapping) loads from 0xffff800000000000. Software
//! KVM does not let a guest use that slot of its L4 table, and a process has no upper half: there each load faults,
//! and is carried out here. Moves, comparisons, integer arithmetic into a register, bit tests and string moves of
//! general registers are; what else loads from there is the guest's page fault. The table is read-only, as everywhere.

use std::ops::Range;

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};
use paravane_abi::addr::MACH2PHYS_VIRT_START;
use paravane_abi::trap::{PFEC_FETCH, PFEC_PRESENT, PFEC_USER, PFEC_WRITE};
use paravane_abi::vm_assist::VMASST_TYPE_M2P_STRICT;

use super::{Emulated, Ended, decode, finish};
use crate::exec::alu;
use crate::exec::memory_op::{is_integer, sign_extend};
use crate::exec::operand::{is_memory, linear_address, read_register, truncate, write_register};
use crate::ledger::Cause;
use crate::machine::memory::{Maddr, Mfn, PAGE_SIZE};
use crate::pv::domain::PvDomain;
use crate::x86::exception::Fault;
use crate::x86::rflags;
use crate::x86::rflags::{CF, OF, PF, SF, ZF};

/// Elements of a repeated instruction that one exit moves.
const MAX_REPEATS: u64 = 512;

/// Handles a page fault in the table; `None` if the fault is the guest's as it is.
pub(super) fn access(d: &mut PvDomain, fault: Fault) -> Option<Emulated> {
    let strict = d.vcpu.assisted(VMASST_TYPE_M2P_STRICT) && !d.vcpu.kernel_mode;
    if strict || !range(d).contains(&fault.address) {
        return None;
    }
    let denied = fault.error_code & (PFEC_WRITE | PFEC_FETCH);
    if denied != 0 {
        // As if it were mapped, for reading only.
        d.deliver_fault(Fault { error_code: PFEC_PRESENT | PFEC_USER | denied, ..fault });
        return Some(Cause::GuestFault { vector: fault.vector }.into());
    }
    let insn = decode::at_rip(d)?;
    let ended = load(d, &insn)?;
    finish(d, &insn, ended);
    Some(Cause::TableLoad.into())
}

/// The linear addresses of the table.
fn range(d: &PvDomain) -> Range<u64> {
    let frames = d.facts.m2p.end.saturating_sub(d.facts.m2p.start);
    MACH2PHYS_VIRT_START..MACH2PHYS_VIRT_START + frames * PAGE_SIZE
}

/// Up to 8 bytes of the table, zero-extended. `None` if they do not all lie in it.
fn read(d: &PvDomain, va: u64, size: usize) -> Option<u64> {
    let table = range(d);
    let last = va.checked_add(size as u64)?.checked_sub(1)?;
    if !table.contains(&va) || !table.contains(&last) {
        return None;
    }
    let at = Maddr(Mfn(d.facts.m2p.start).maddr().0 + (va - table.start));
    let mut bytes = [0; 8];
    d.memory.read(at, bytes.get_mut(..size)?).ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn load(d: &mut PvDomain, insn: &Instruction) -> Option<Ended> {
    use Mnemonic::*;
    if !is_integer(insn) {
        return None;
    }
    match insn.mnemonic() {
        Movsb | Movsw | Movsd | Movsq | Lodsb | Lodsw | Lodsd | Lodsq => string(d, insn),
        Mov | Movzx | Movsx | Movsxd | Add | Adc | Sub | Sbb | And | Or | Xor | Cmp | Test => {
            arithmetic(d, insn)
        }
        Bt => bit_test(d, insn),
        _ if insn.condition_code() != ConditionCode::None && insn.op0_kind() == OpKind::Register => {
            conditional_move(d, insn)
        }
        _ => None,
    }
}

/// The memory operand's value, if it is in the table.
fn operand(d: &PvDomain, insn: &Instruction, number: u32) -> Option<u64> {
    match insn.op_kind(number) {
        OpKind::Register => Some(read_register(&d.vcpu.regs, insn.op_register(number))),
        kind if is_memory(kind) => {
            read(d, linear_address(&d.vcpu.regs, insn, number)?, insn.memory_size().size())
        }
        _ => insn.try_immediate(number).ok(),
    }
}

fn operand_size(insn: &Instruction, number: u32) -> usize {
    match insn.op_kind(number) {
        OpKind::Register => insn.op_register(number).size(),
        _ => insn.memory_size().size(),
    }
}

fn arithmetic(d: &mut PvDomain, insn: &Instruction) -> Option<Ended> {
    use Mnemonic::*;
    let mnemonic = insn.mnemonic();
    let compares = matches!(mnemonic, Cmp | Test);
    // Anything else with a memory operand in the first place stores, and has not faulted here.
    if !compares && insn.op0_kind() != OpKind::Register {
        return None;
    }
    let moves = matches!(mnemonic, Mov | Movzx | Movsx | Movsxd);
    let a = if moves { 0 } else { operand(d, insn, 0)? };
    let mut b = operand(d, insn, 1)?;
    if matches!(mnemonic, Movsx | Movsxd) {
        b = sign_extend(b, operand_size(insn, 1));
    }
    let regs = &mut d.vcpu.regs;
    let outcome = alu::compute(mnemonic, a, b, regs.rflags & CF != 0, operand_size(insn, 0))?;
    regs.rflags = outcome.apply(regs.rflags);
    if !compares {
        write_register(regs, insn.op0_register(), outcome.value);
    }
    Some(Ended::Done)
}

/// BT. A bit number in a register can name a bit beyond the operand, anywhere in memory: that is not done.
fn bit_test(d: &mut PvDomain, insn: &Instruction) -> Option<Ended> {
    let size = operand_size(insn, 0);
    let (value, number) = (operand(d, insn, 0)?, operand(d, insn, 1)?);
    let bits = size as u64 * 8;
    if insn.op1_kind() == OpKind::Register && truncate(number, size) >= bits {
        return None;
    }
    let regs = &mut d.vcpu.regs;
    regs.rflags = alu::bit(value, value, u32::try_from(number % bits).ok()?).apply(regs.rflags);
    Some(Ended::Done)
}

/// CMOVcc: loads in any case; a 32-bit one clears the upper half in any case.
fn conditional_move(d: &mut PvDomain, insn: &Instruction) -> Option<Ended> {
    let loaded = operand(d, insn, 1)?;
    let holds = holds(insn.condition_code(), d.vcpu.regs.rflags)?;
    let value = if holds { loaded } else { operand(d, insn, 0)? };
    write_register(&mut d.vcpu.regs, insn.op0_register(), value);
    Some(Ended::Done)
}

/// Whether a condition holds (SDM vol. 1, appendix B).
fn holds(condition: ConditionCode, flags: u64) -> Option<bool> {
    let has = |flag: u64| flags & flag != 0;
    let less = has(SF) != has(OF);
    Some(match condition {
        ConditionCode::None => return None,
        ConditionCode::o => has(OF),
        ConditionCode::no => !has(OF),
        ConditionCode::b => has(CF),
        ConditionCode::ae => !has(CF),
        ConditionCode::e => has(ZF),
        ConditionCode::ne => !has(ZF),
        ConditionCode::be => has(CF) || has(ZF),
        ConditionCode::a => !has(CF) && !has(ZF),
        ConditionCode::s => has(SF),
        ConditionCode::ns => !has(SF),
        ConditionCode::p => has(PF),
        ConditionCode::np => !has(PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || has(ZF),
        ConditionCode::g => !less && !has(ZF),
    })
}

/// MOVS and LODS, repeated or not.
fn string(d: &mut PvDomain, insn: &Instruction) -> Option<Ended> {
    let moves = insn.op0_kind() == OpKind::MemoryESRDI;
    if insn.op1_kind() != OpKind::MemorySegRSI || !moves && insn.op0_kind() != OpKind::Register {
        return None;
    }
    let size = insn.memory_size().size();
    let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
    for _ in 0..MAX_REPEATS {
        if repeats && d.vcpu.regs.rcx == 0 {
            return Some(Ended::Done);
        }
        let from = linear_address(&d.vcpu.regs, insn, 1)?;
        // Past the table's end the processor goes on, and faults there.
        let Some(value) = read(d, from, size) else { return Some(Ended::Again) };
        if moves {
            let to = d.vcpu.regs.rdi;
            if d.write_guest(to, value.to_le_bytes().get(..size)?).is_err() {
                return Some(Ended::Fault(d.fault_at(to, size, PFEC_WRITE)));
            }
        } else {
            write_register(&mut d.vcpu.regs, insn.op0_register(), value);
        }
        let regs = &mut d.vcpu.regs;
        let step = size as u64;
        let backwards = regs.rflags & rflags::DF != 0;
        let next = |at: u64| if backwards { at.wrapping_sub(step) } else { at.wrapping_add(step) };
        regs.rsi = next(regs.rsi);
        if moves {
            regs.rdi = next(regs.rdi);
        }
        if !repeats {
            return Some(Ended::Done);
        }
        regs.rcx -= 1;
    }
    Some(Ended::Again)
}
