//! Writable page tables: validates and makes a kernel's store to one of its own L1 tables, which are mapped read-only
//! (VMASST_TYPE_writable_pagetables).
//!
//! Moves, exchanges, integer and bit arithmetic and string stores of general registers, as compilers and kernels use
//! them on entries. For a refused entry, or any other instruction, the guest gets its page fault.

use iced_x86::{Instruction, OpKind};
use paravane_abi::trap::{PFEC_FETCH, PFEC_PRESENT, PFEC_RESERVED, PFEC_WRITE};
use paravane_abi::vm_assist::VMASST_TYPE_WRITABLE_PAGETABLES;

use super::decode;
use super::outcome::{Ended, ExceptionOutcome, finish};
use crate::exec::operand::{Operands, linear_address, write_register};
use crate::exec::ordinary::update;
use crate::exec::outside::{Attempt, Incomplete, Memory, Stored};
use crate::exec::string::StringMove;
use crate::ledger::Cause;
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::mmu::direct::Stop;
use crate::mmu::direct::frame::{FrameType, Level};
use crate::pv::context::PvContext;
use crate::x86::exception::{Exception, Fault};

/// Where a store goes.
struct Target {
    at: Maddr,
    size: usize,
}

/// Makes the store that faulted; `None` if the fault is for the guest.
pub(super) fn store(cx: &mut PvContext<'_>, fault: Fault) -> Option<ExceptionOutcome> {
    let code = fault.error_code;
    let wanted = PFEC_PRESENT | PFEC_WRITE;
    let plain = code & (wanted | PFEC_RESERVED | PFEC_FETCH) == wanted;
    if !plain || !cx.vcpu.kernel_mode || !cx.domain.assisted(VMASST_TYPE_WRITABLE_PAGETABLES) {
        return None;
    }
    if !is_l1_table(cx, fault.address) {
        return None;
    }
    let insn = decode::at_rip(cx)?;
    let ended = match StringMove::of(&insn).filter(|string| string.stores() && string.is_wide()) {
        Some(moves) => string(cx, &insn, moves, fault)?,
        None => single(cx, &insn, fault)?,
    };
    finish(cx, &insn, ended);
    Some(Cause::PageTableStore.into())
}

/// Whether a linear address leads to a frame that is an L1 table of the guest's.
fn is_l1_table(cx: &PvContext<'_>, va: u64) -> bool {
    let frame = cx.guest().translate(va, false).ok().and_then(|at| cx.domain.mmu.frame(at.mfn()));
    frame.and_then(|f| f.held_as()) == Some(FrameType::Table(Level::L1))
}

/// Where `size` bytes at `va` are: naturally aligned and in the page that faulted, or the store is not done here.
fn target(cx: &PvContext<'_>, va: u64, size: usize, fault: Fault) -> Option<Target> {
    let aligned = matches!(size, 1 | 2 | 4 | 8) && va.is_multiple_of(size as u64);
    let same_page = va / PAGE_SIZE == fault.address / PAGE_SIZE;
    let at = cx.guest().translate(va, false).ok().filter(|_| aligned && same_page)?;
    Some(Target { at, size })
}

fn load(cx: &PvContext<'_>, target: &Target) -> Option<u64> {
    let mut bytes = [0; 8];
    cx.domain.memory.read(target.at, bytes.get_mut(..target.size)?).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Validates the store and makes it; `None` if it is refused.
fn commit(cx: &mut PvContext<'_>, target: &Target, value: u64) -> Option<Ended> {
    let size = u8::try_from(target.size).ok()?;
    match cx.domain.mmu.emulate_pte_store(&cx.domain.memory, &mut cx.domain.log, target.at, value, size) {
        Ok(()) => Some(Ended::Done),
        Err(Stop::Restart) => Some(Ended::Again),
        Err(Stop::Refused(_)) => None,
    }
}

fn single(cx: &mut PvContext<'_>, insn: &Instruction, fault: Fault) -> Option<Ended> {
    let operand = (0..insn.op_count()).find(|op| insn.op_kind(*op) == OpKind::Memory)?;
    let va = linear_address(&cx.vcpu.regs, insn, operand)?;
    let target = target(cx, va, insn.memory_size().size(), fault)?;
    let old = load(cx, &target)?;
    let update = update(insn, &cx.vcpu.regs, operand, old)?;
    if let Some(value) = update.store {
        match commit(cx, &target, value)? {
            Ended::Done => {}
            other => return Some(other),
        }
    }
    let regs = &mut cx.vcpu.regs;
    regs.rflags = update.flags;
    if let Some((register, value)) = update.register {
        write_register(regs, register, value);
    }
    Some(Ended::Done)
}

/// The guest's memory for a string instruction: what it stores goes to the table that faulted.
struct TableMemory<'a> {
    cx: PvContext<'a>,
    fault: Fault,
}

/// Why a store of a string instruction is not made.
enum NotDone {
    /// It is refused, or is not to that table: the fault is for the guest.
    Refused,
    /// The validation was interrupted: the instruction is executed again.
    Again,
}

impl Memory for TableMemory<'_> {
    type Failure = NotDone;

    fn read(&mut self, va: u64, buf: &mut [u8], _: bool) -> Attempt<(), Self> {
        let read = self.cx.guest().read_bytes(va, buf);
        read.map_err(|_| Exception::from(self.cx.guest().fault_at(va, buf.len(), 0)).into())
    }

    /// Reported as plain memory, so that one exit stores one element: the processor faults again for the next.
    fn write(&mut self, va: u64, bytes: &[u8], _: bool) -> Attempt<Stored, Self> {
        let mut value = [0; 8];
        let target =
            target(&self.cx, va, bytes.len(), self.fault).ok_or(Incomplete::Machine(NotDone::Refused))?;
        for (to, from) in value.iter_mut().zip(bytes) {
            *to = *from;
        }
        match commit(&mut self.cx, &target, u64::from_le_bytes(value)) {
            Some(Ended::Done) => Ok(Stored::Memory),
            Some(_) => Err(Incomplete::Machine(NotDone::Again)),
            None => Err(Incomplete::Machine(NotDone::Refused)),
        }
    }

    fn probe_write(&mut self, _: u64, _: usize, _: bool) -> Attempt<(), Self> {
        Err(Incomplete::Machine(NotDone::Refused))
    }
}

/// One element of STOS or MOVS. A repeated instruction faults again for the next one.
fn string(cx: &mut PvContext<'_>, insn: &Instruction, string: StringMove, fault: Fault) -> Option<Ended> {
    let mut regs = cx.vcpu.regs;
    let mut memory = TableMemory { cx: cx.reborrow(), fault };
    let mut operands = Operands { regs: &mut regs, memory: &mut memory, user: false };
    let ended = string.transfer(insn, &mut operands, 1);
    cx.vcpu.regs = regs;
    Some(match ended {
        Ok(true) => Ended::Done,
        Ok(false) | Err(Incomplete::Machine(NotDone::Again)) => Ended::Again,
        Err(Incomplete::Machine(NotDone::Refused)) => return None,
        Err(Incomplete::Exception(exception)) => Ended::Fault(exception.into()),
    })
}
