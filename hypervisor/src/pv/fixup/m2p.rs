//! The machine-to-physical table at the address that Xen's headers have for it, where the engine cannot map it there.
//!
//! A guest that does not ask where the table is (XENMEM_machphys_mapping) loads from 0xffff800000000000. Software KVM
//! does not let a guest use that slot of its L4 table, and a process has no upper half: there each load faults and is
//! emulated here. Emulated are moves, comparisons, integer arithmetic into a register, bit tests and string moves, all
//! with general registers; for any other instruction the guest gets the page fault. The table is read-only, as
//! everywhere.

use std::ops::Range;

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};
use paravane_abi::addr::MACH2PHYS_VIRT_START;
use paravane_abi::trap::{PFEC_FETCH, PFEC_PRESENT, PFEC_USER, PFEC_WRITE};
use paravane_abi::vm_assist::VMASST_TYPE_M2P_STRICT;

use super::decode;
use super::outcome::{Ended, ExceptionOutcome, finish};
use crate::exec::alu;
use crate::exec::operand::{
    Operands, is_integer, is_memory, linear_address, operand_size, read_register, sign_extend, write_register,
};
use crate::exec::ordinary::bit_inside;
use crate::exec::outside::{Attempt, Incomplete, Memory, Stored};
use crate::exec::string::StringMove;
use crate::ledger::Cause;
use crate::machine::memory::{Maddr, Mfn, PAGE_SIZE};
use crate::pv::context::PvContext;
use crate::x86::exception::{Exception, Fault};
use crate::x86::rflags::CF;

/// Elements of a repeated instruction that one exit moves.
const MAX_REPEATS: u64 = 512;

/// Handles a page fault in the table; `None` if the guest gets the fault unchanged.
pub(super) fn access(cx: &mut PvContext<'_>, fault: Fault) -> Option<ExceptionOutcome> {
    let strict = cx.domain.assisted(VMASST_TYPE_M2P_STRICT) && !cx.vcpu.kernel_mode;
    if strict || !ranges(cx).any(|range| range.contains(&fault.address)) {
        return None;
    }
    let denied = fault.error_code & (PFEC_WRITE | PFEC_FETCH);
    if denied != 0 {
        // As if the table were mapped read-only.
        cx.deliver_fault(Fault { error_code: PFEC_PRESENT | PFEC_USER | denied, ..fault });
        return Some(Cause::GuestFault { vector: fault.vector }.into());
    }
    let insn = decode::at_rip(cx)?;
    let ended = load(cx, &insn)?;
    finish(cx, &insn, ended);
    Some(Cause::TableLoad.into())
}

/// The linear addresses of the table: Xen's, and those that a restored guest was told by another engine.
fn ranges(cx: &PvContext<'_>) -> impl Iterator<Item = Range<u64>> + use<> {
    let facts = &cx.domain.facts;
    let bytes = facts.m2p.end.saturating_sub(facts.m2p.start) * PAGE_SIZE;
    let starts = [Some(MACH2PHYS_VIRT_START), facts.m2p_told].into_iter().flatten();
    starts.map(move |start| start..start.saturating_add(bytes))
}

/// Up to 8 bytes of the table, zero-extended. `None` if they do not all lie in it.
fn read(cx: &PvContext<'_>, va: u64, size: usize) -> Option<u64> {
    let last = va.checked_add(size as u64)?.checked_sub(1)?;
    let table = ranges(cx).find(|table| table.contains(&va) && table.contains(&last))?;
    let at = Maddr(Mfn(cx.domain.facts.m2p.start).maddr().0 + (va - table.start));
    let mut bytes = [0; 8];
    cx.domain.memory.read(at, bytes.get_mut(..size)?).ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn load(cx: &mut PvContext<'_>, insn: &Instruction) -> Option<Ended> {
    use Mnemonic::*;
    if !is_integer(insn) {
        return None;
    }
    match insn.mnemonic() {
        Movsb | Movsw | Movsd | Movsq | Lodsb | Lodsw | Lodsd | Lodsq => string(cx, insn),
        Mov | Movzx | Movsx | Movsxd | Add | Adc | Sub | Sbb | And | Or | Xor | Cmp | Test => {
            arithmetic(cx, insn)
        }
        Bt => bit_test(cx, insn),
        _ if insn.condition_code() != ConditionCode::None && insn.op0_kind() == OpKind::Register => {
            conditional_move(cx, insn)
        }
        _ => None,
    }
}

/// The memory operand's value, if it is in the table.
fn operand(cx: &PvContext<'_>, insn: &Instruction, number: u32) -> Option<u64> {
    match insn.op_kind(number) {
        OpKind::Register => Some(read_register(&cx.vcpu.regs, insn.op_register(number))),
        kind if is_memory(kind) => {
            read(cx, linear_address(&cx.vcpu.regs, insn, number)?, insn.memory_size().size())
        }
        _ => insn.try_immediate(number).ok(),
    }
}

fn arithmetic(cx: &mut PvContext<'_>, insn: &Instruction) -> Option<Ended> {
    use Mnemonic::*;
    let mnemonic = insn.mnemonic();
    let compares = matches!(mnemonic, Cmp | Test);
    // Other instructions whose first operand is in memory store to it, and are not emulated.
    if !compares && insn.op0_kind() != OpKind::Register {
        return None;
    }
    let a = if alu::is_move(mnemonic) { 0 } else { operand(cx, insn, 0)? };
    let mut b = operand(cx, insn, 1)?;
    if alu::extends_sign(mnemonic) {
        b = sign_extend(b, operand_size(insn, 1));
    }
    let regs = &mut cx.vcpu.regs;
    let computed = alu::compute(mnemonic, a, b, regs.rflags & CF != 0, operand_size(insn, 0))?;
    regs.rflags = computed.apply(regs.rflags);
    if !compares {
        write_register(regs, insn.op0_register(), computed.value);
    }
    Some(Ended::Done)
}

/// BT. Not if the bit number in a register names a bit outside of the operand.
fn bit_test(cx: &mut PvContext<'_>, insn: &Instruction) -> Option<Ended> {
    let size = operand_size(insn, 0);
    let (value, number) = (operand(cx, insn, 0)?, operand(cx, insn, 1)?);
    let number = bit_inside(insn, number, size)?;
    let regs = &mut cx.vcpu.regs;
    regs.rflags = alu::bit(value, value, number).apply(regs.rflags);
    Some(Ended::Done)
}

/// CMOVcc: loads in any case; a 32-bit one clears the upper half in any case.
fn conditional_move(cx: &mut PvContext<'_>, insn: &Instruction) -> Option<Ended> {
    let loaded = operand(cx, insn, 1)?;
    let holds = alu::holds(insn.condition_code(), cx.vcpu.regs.rflags)?;
    let value = if holds { loaded } else { operand(cx, insn, 0)? };
    write_register(&mut cx.vcpu.regs, insn.op0_register(), value);
    Some(Ended::Done)
}

/// The table for loads, and the guest's memory for what MOVS stores.
struct LoadMemory<'a> {
    cx: PvContext<'a>,
}

/// A load is outside of the table: the processor executes it, and faults.
struct OutsideTable;

impl Memory for LoadMemory<'_> {
    type Failure = OutsideTable;

    fn read(&mut self, va: u64, buf: &mut [u8], _: bool) -> Attempt<(), Self> {
        let value = read(&self.cx, va, buf.len()).ok_or(Incomplete::Machine(OutsideTable))?;
        for (to, from) in buf.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        Ok(())
    }

    fn write(&mut self, va: u64, bytes: &[u8], user: bool) -> Attempt<Stored, Self> {
        match self.cx.guest().write_bytes(va, bytes) {
            // Not reported as plain memory, so that this exit goes on with the next element.
            Ok(()) => Ok(Stored::Bus),
            Err(_) => self.probe_write(va, bytes.len(), user).map(|()| Stored::Bus),
        }
    }

    fn probe_write(&mut self, va: u64, len: usize, _: bool) -> Attempt<(), Self> {
        Err(Exception::from(self.cx.guest().fault_at(va, len, PFEC_WRITE)).into())
    }
}

/// MOVS and LODS with 64-bit addresses, repeated or not.
fn string(cx: &mut PvContext<'_>, insn: &Instruction) -> Option<Ended> {
    let string = StringMove::of(insn).filter(|string| string.is_wide() && string.loads())?;
    let mut regs = cx.vcpu.regs;
    let mut memory = LoadMemory { cx: cx.reborrow() };
    let mut operands = Operands { regs: &mut regs, memory: &mut memory, user: false };
    let ended = string.transfer(insn, &mut operands, MAX_REPEATS);
    cx.vcpu.regs = regs;
    Some(match ended {
        Ok(true) => Ended::Done,
        Ok(false) | Err(Incomplete::Machine(OutsideTable)) => Ended::Again,
        Err(Incomplete::Exception(exception)) => Ended::Fault(exception.into()),
    })
}
