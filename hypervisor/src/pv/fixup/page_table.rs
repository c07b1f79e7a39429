//! Writable page tables: a kernel's store to one of its own L1 tables, which are mapped read-only, is
//! validated and done for it (VMASST_TYPE_writable_pagetables).
//!
//! Moves, exchanges, integer and bit arithmetic and string stores of general registers, as compilers and
//! kernels use them on entries. A refused entry, or another instruction, is the guest's page fault.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use paravane_abi::trap::{PFEC_FETCH, PFEC_PRESENT, PFEC_RESERVED, PFEC_WRITE};
use paravane_abi::vm_assist::VMASST_TYPE_WRITABLE_PAGETABLES;

use super::{Emulated, Ended, decode, finish};
use crate::exec::alu;
use crate::exec::alu::Outcome;
use crate::exec::memory_op::is_integer;
use crate::exec::operand::{linear_address, read_register, truncate, write_register};
use crate::ledger::Cause;
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::mmu::direct::Stop;
use crate::mmu::direct::frame::{FrameType, Level};
use crate::pv::domain::PvDomain;
use crate::x86::exception::Fault;
use crate::x86::rflags;

/// What an instruction does once its store is accepted.
struct Effect {
    /// The store, if the instruction makes one (CMPXCHG may not).
    store: Option<u64>,
    /// RFLAGS afterwards.
    flags: u64,
    /// A register that changes too.
    register: Option<(Register, u64)>,
}

/// Where a store goes.
struct Target {
    va: u64,
    at: Maddr,
    size: usize,
}

/// Performs the store that faulted; `None` if the fault is the guest's.
pub(super) fn store(d: &mut PvDomain, fault: Fault) -> Option<Emulated> {
    let code = fault.error_code;
    let wanted = PFEC_PRESENT | PFEC_WRITE;
    let plain = code & (wanted | PFEC_RESERVED | PFEC_FETCH) == wanted;
    if !plain || !d.vcpu.kernel_mode || !d.vcpu.assisted(VMASST_TYPE_WRITABLE_PAGETABLES) {
        return None;
    }
    if !is_l1_table(d, fault.address) {
        return None;
    }
    let insn = decode::at_rip(d)?;
    let ended = if is_string(&insn) { string(d, &insn, fault)? } else { single(d, &insn, fault)? };
    finish(d, &insn, ended);
    Some(Cause::PageTableStore.into())
}

/// Whether a linear address leads to a frame that is an L1 table of the guest's.
fn is_l1_table(d: &PvDomain, va: u64) -> bool {
    let frame = d.translate(va, false).ok().and_then(|at| d.mmu.frame(at.mfn()));
    frame.and_then(|f| f.held_as()) == Some(FrameType::Table(Level::L1))
}

/// The place of a memory operand: naturally aligned and in the page that faulted, or it is none of ours.
fn target(d: &PvDomain, insn: &Instruction, operand: u32, fault: Fault) -> Option<Target> {
    let va = linear_address(&d.vcpu.regs, insn, operand)?;
    let size = insn.memory_size().size();
    let aligned = matches!(size, 1 | 2 | 4 | 8) && va.is_multiple_of(size as u64);
    let same_page = va / PAGE_SIZE == fault.address / PAGE_SIZE;
    let at = d.translate(va, false).ok().filter(|_| aligned && same_page)?;
    Some(Target { va, at, size })
}

fn load(d: &PvDomain, target: &Target) -> Option<u64> {
    let mut bytes = [0; 8];
    d.memory.read(target.at, bytes.get_mut(..target.size)?).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Has the store validated and made. `None` refuses.
fn commit(d: &mut PvDomain, target: &Target, value: u64) -> Option<Ended> {
    let size = u8::try_from(target.size).ok()?;
    match d.mmu.emulate_pte_store(&d.memory, &mut d.log, target.at, value, size) {
        Ok(()) => Some(Ended::Done),
        Err(Stop::Restart) => Some(Ended::Again),
        Err(Stop::Refused(_)) => None,
    }
}

fn single(d: &mut PvDomain, insn: &Instruction, fault: Fault) -> Option<Ended> {
    let operand = (0..insn.op_count()).find(|op| insn.op_kind(*op) == OpKind::Memory)?;
    let target = target(d, insn, operand, fault)?;
    let old = load(d, &target)?;
    let effect = effect(d, insn, operand, &target, old)?;
    if let Some(value) = effect.store {
        match commit(d, &target, value)? {
            Ended::Done => {}
            other => return Some(other),
        }
    }
    let regs = &mut d.vcpu.regs;
    regs.rflags = effect.flags;
    if let Some((register, value)) = effect.register {
        write_register(regs, register, value);
    }
    Some(Ended::Done)
}

/// What an instruction whose memory operand holds `old` does.
fn effect(d: &PvDomain, insn: &Instruction, operand: u32, target: &Target, old: u64) -> Option<Effect> {
    use Mnemonic::*;
    if !is_integer(insn) {
        return None;
    }
    let regs = &d.vcpu.regs;
    let source = source(d, insn, operand)?;
    let with = |outcome: Outcome| Effect {
        store: Some(outcome.value),
        flags: outcome.apply(regs.rflags),
        register: None,
    };
    Some(match insn.mnemonic() {
        Xchg => {
            let register = insn.op_register(1 - operand);
            Effect { register: Some((register, old)), ..with(alu::plain(source)) }
        }
        Xadd => {
            let sum = alu::add(old, source, false, target.size);
            Effect { register: Some((insn.op1_register(), old)), ..with(sum) }
        }
        Cmpxchg => compare_exchange(d, source, target.size, old),
        Bts | Btr | Btc => with(bit(insn, source, target, old)?),
        // These read: they cannot have faulted so.
        Cmp | Test => return None,
        mnemonic if operand == 0 => {
            with(alu::compute(mnemonic, old, source, regs.rflags & rflags::CF != 0, target.size)?)
        }
        _ => return None,
    })
}

/// The operand that is not the memory one; 0 where there is none.
fn source(d: &PvDomain, insn: &Instruction, memory: u32) -> Option<u64> {
    let Some(operand) = (0..insn.op_count()).find(|op| *op != memory) else { return Some(0) };
    match insn.op_kind(operand) {
        OpKind::Register => Some(read_register(&d.vcpu.regs, insn.op_register(operand))),
        _ => insn.try_immediate(operand).ok(),
    }
}

fn compare_exchange(d: &PvDomain, source: u64, size: usize, old: u64) -> Effect {
    let accumulator = match size {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    let regs = &d.vcpu.regs;
    let compared = alu::sub(read_register(regs, accumulator), old, false, size);
    let equal = compared.value == 0;
    Effect {
        store: equal.then_some(source),
        flags: compared.apply(regs.rflags),
        register: (!equal).then_some((accumulator, old)),
    }
}

/// A bit number in a register can name a bit beyond the operand; such a store did not fault where it went.
fn bit(insn: &Instruction, number: u64, target: &Target, old: u64) -> Option<Outcome> {
    let bits = target.size as u64 * 8;
    let inside = truncate(number, target.size) < bits;
    if insn.op1_kind() == OpKind::Register && !inside {
        return None;
    }
    let number = u32::try_from(number % bits).ok()?;
    let mask = 1u64 << number;
    let value = match insn.mnemonic() {
        Mnemonic::Bts => old | mask,
        Mnemonic::Btr => old & !mask,
        _ => old ^ mask,
    };
    Some(alu::bit(old, value, number))
}

fn is_string(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(insn.mnemonic(), Stosb | Stosw | Stosd | Stosq | Movsb | Movsw | Movsd | Movsq)
        && insn.op0_kind() == OpKind::MemoryESRDI
}

/// One element of STOS or MOVS; a repeated one comes back for the next.
fn string(d: &mut PvDomain, insn: &Instruction, fault: Fault) -> Option<Ended> {
    let target = target(d, insn, 0, fault)?;
    let moves = insn.op1_kind() != OpKind::Register;
    let value = if moves {
        let from = linear_address(&d.vcpu.regs, insn, 1)?;
        let mut bytes = [0; 8];
        if d.read_guest(from, bytes.get_mut(..target.size)?).is_err() {
            return Some(Ended::Fault(d.fault_at(from, target.size, 0)));
        }
        u64::from_le_bytes(bytes)
    } else {
        d.vcpu.regs.rax
    };
    match commit(d, &target, value)? {
        Ended::Done => {}
        other => return Some(other),
    }
    let regs = &mut d.vcpu.regs;
    let step = target.size as u64;
    let backwards = regs.rflags & rflags::DF != 0;
    let next = |at: u64| if backwards { at.wrapping_sub(step) } else { at.wrapping_add(step) };
    debug_assert_eq!(target.va, regs.rdi);
    regs.rdi = next(regs.rdi);
    if moves {
        regs.rsi = next(regs.rsi);
    }
    if !insn.has_rep_prefix() && !insn.has_repne_prefix() {
        return Some(Ended::Done);
    }
    regs.rcx = regs.rcx.wrapping_sub(1);
    Some(if regs.rcx == 0 { Ended::Done } else { Ended::Again })
}
