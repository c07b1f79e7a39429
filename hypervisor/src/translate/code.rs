//! Reads the guest's code, and what it says about where control goes.

use iced_x86::{Instruction, Register};
use paravane_abi::addr::is_canonical;

use super::place::read;
use crate::machine::memory::{MachineMemory, Maddr, PAGE_SIZE};
use crate::mmu::shadow::Shadow;
use crate::x86::decode::{Dialect, MAX_LENGTH, instruction_at};
use crate::x86::sensitive::Class;
use crate::x86::walk::Access;

/// How many bytes of an instruction that begins before `va` there may be from there on, in the same page.
pub(super) fn room_in_page(va: u64) -> usize {
    ((PAGE_SIZE - va % PAGE_SIZE) as usize).min(MAX_LENGTH)
}

pub(super) fn next_page(va: u64) -> u64 {
    (va & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE)
}

/// The guest's frame that the kernel executes at `va`.
pub(super) fn frame_of(shadow: &Shadow, memory: &MachineMemory, va: u64) -> Option<u64> {
    if !is_canonical(va) {
        return None;
    }
    let found = shadow.lookup(memory, va, Access { write: false, user: false, fetch: true }).ok()?;
    memory.mfn_to_pfn(found.maddr()?.mfn())
}

/// Whether the instruction at `rip` is a sensitive one.
pub(super) fn is_sensitive(rip: u64, shadow: &Shadow, memory: &MachineMemory) -> bool {
    let insn = instruction_at(rip, Dialect::Intel, |va, buf| {
        read_frame(memory, frame_of(shadow, memory, va)?, va, buf).then_some(())
    });
    insn.is_some_and(|insn| Class::of(&insn).is_some())
}

/// Whether the guest maps anything at `va`.
pub(super) fn is_mapped(shadow: &Shadow, memory: &MachineMemory, va: u64) -> bool {
    shadow.lookup(memory, va, Access { write: false, user: false, fetch: false }).is_ok()
}

pub(super) fn read_frame(memory: &MachineMemory, pfn: u64, va: u64, buf: &mut [u8]) -> bool {
    let Some(mfn) = memory.pfn_to_mfn(pfn) else { return false };
    read(memory, Maddr(mfn.maddr().0 | (va % PAGE_SIZE)), buf)
}

/// Where a call through a pointer in the kernel's own data leads now, if its place is known.
pub(super) fn pointer(insn: &Instruction, shadow: &Shadow, memory: &MachineMemory) -> Option<u64> {
    if insn.memory_base() != Register::RIP || insn.memory_index() != Register::None {
        return None;
    }
    let va = insn.ip_rel_memory_address();
    word(shadow, memory, va)
}

/// The word that the kernel finds at `va`, if it is an aligned one.
pub(super) fn word(shadow: &Shadow, memory: &MachineMemory, va: u64) -> Option<u64> {
    if !va.is_multiple_of(8) || !is_canonical(va) {
        return None;
    }
    let at = shadow.lookup(memory, va, Access { write: false, user: false, fetch: false }).ok()?.maddr()?;
    memory.load_u64(at).ok()
}
