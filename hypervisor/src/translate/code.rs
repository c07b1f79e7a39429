//! Reads the guest's code, and what it says about where control goes.

use iced_x86::{Instruction, Register};
use paravane_abi::addr::is_canonical;
use paravane_abi::pte;

use super::place::read;
use crate::machine::memory::{MachineMemory, Maddr, PAGE_SIZE};
use crate::mmu::shadow::Shadow;
use crate::x86::decode::{Dialect, MAX_LENGTH, instruction_at};
use crate::x86::sensitive::Class;
use crate::x86::walk::{Access, PseudoPhysicalTables, walk};

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

/// The entry number `n` of a jump table at `table`, whose entries count from there: where it leads.
pub(super) fn case(shadow: &Shadow, memory: &MachineMemory, table: u64, n: u64) -> Option<u64> {
    let va = table.wrapping_add(4 * n);
    if !va.is_multiple_of(4) || !is_canonical(va) {
        return None;
    }
    let at = shadow.lookup(memory, va, Access { write: false, user: false, fetch: false }).ok()?.maddr()?;
    let mut entry = [0; 4];
    read(memory, at, &mut entry).then(|| table.wrapping_add_signed(i32::from_le_bytes(entry).into()))
}

/// The frame to which a store of the kernel's at `va` goes, if nothing is to be marked as accessed or written for it.
pub(super) fn marked_frame(memory: &MachineMemory, cr3: u64, va: u64) -> Option<u64> {
    let found = walk(memory, &PseudoPhysicalTables, cr3 & pte::ADDR_MASK, va).ok()?;
    let steps = (found.level..=4).map(|level| found.step(level).unwrap_or_default().value);
    let marked = steps.fold(pte::ACCESSED, |marked, value| marked & value) != 0;
    let dirty = found.leaf().value & pte::DIRTY != 0;
    memory.mfn_to_pfn(found.maddr?.mfn()).filter(|_| found.writable && marked && dirty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::{Backing, Mfn};

    const VA: u64 = 0x4020_3000;
    const FLAGS: u64 = pte::PRESENT | pte::RW | pte::ACCESSED;

    /// Tables in frames 0 to 3 that map [`VA`] to frame 5.
    fn mapped() -> MachineMemory {
        let memory = MachineMemory::new(0, 8, Backing::Anonymous).unwrap();
        for (level, to) in [(4u32, 1), (3, 2), (2, 3), (1, 5)] {
            let dirty = if level == 1 { pte::DIRTY } else { 0 };
            memory.store_u64(entry(level), to << 12 | FLAGS | dirty).unwrap();
        }
        memory
    }

    fn entry(level: u32) -> Maddr {
        let index = VA >> (12 + 9 * (level - 1)) & 511;
        Maddr(Mfn(u64::from(4 - level)).maddr().0 + index * 8)
    }

    #[test]
    fn a_store_that_would_mark_something_has_no_frame() {
        let memory = mapped();
        assert_eq!(marked_frame(&memory, 0, VA), Some(5));
        assert_eq!(marked_frame(&memory, 0, VA + 0x1000), None, "nothing is mapped");
        for level in 1..=4 {
            for missing in [pte::ACCESSED, pte::RW, pte::PRESENT] {
                let old = memory.load_u64(entry(level)).unwrap();
                memory.store_u64(entry(level), old & !missing).unwrap();
                assert_eq!(marked_frame(&memory, 0, VA), None, "level {level} without {missing:#x}");
                memory.store_u64(entry(level), old).unwrap();
            }
        }
        memory.store_u64(entry(1), 5 << 12 | FLAGS).unwrap();
        assert_eq!(marked_frame(&memory, 0, VA), None, "not written yet");
    }
}
