//! Page-table entries.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::bare::BareMmu;
use crate::machine::primitive::{Did, Primitive, SCRATCH_WORD, release_scratch_page, scratch_page};
use crate::memory::paging::{MapError, Mmu};
use crate::memory::{Memory, SCRATCH, direct_map};

/// A bit that only software reads.
const SOFTWARE: u64 = 1 << 9;

/// A change of an entry that no translation depends on.
///
/// Each run begins with a change that does matter, as they come in between in a kernel: a hypervisor may take a table
/// that only ever changes without effect for ordinary memory.
pub const PTEMOD: Primitive<BareMmu> = Primitive {
    most: 1000,
    empty: change_once,
    prepare,
    finish: |memory, [_, entry, _]| release_scratch_page(memory, entry),
    ..Primitive::new(
        "ptemod",
        "toggle a bit that only software reads in the entry of a page in use",
        change,
        |memory, did| {
            let [_, entry, va] = did.arguments;
            // SAFETY: `prepare` mapped it.
            let word = unsafe { (va as *const u64).read_volatile() };
            in_table(memory) == Some(entry) && word == SCRATCH_WORD
        },
    )
};

/// A page comes and goes.
pub const PTEMAP: Primitive<BareMmu> = Primitive {
    prepare,
    unmapped: true,
    finish: |memory, [_, entry, _]| release_scratch_page(memory, entry),
    ..Primitive::new("ptemap", "map a page, read it, unmap it", map, |memory, did: &Did| {
        in_table(memory) == Some(0) && did.returned == did.last * (SCRATCH_WORD & 0xff)
    })
};

/// The address of the page's entry, and its value, for [`change_once`].
static SLOT: AtomicU64 = AtomicU64::new(0);
static ENTRY: AtomicU64 = AtomicU64::new(0);

fn prepare(memory: &mut Memory<BareMmu>) -> Result<[u64; 3], MapError> {
    let (table, index, entry) = scratch_page(memory)?;
    let slot = direct_map(table) + index as u64 * 8;
    SLOT.store(slot, Ordering::Relaxed);
    ENTRY.store(entry, Ordering::Relaxed);
    Ok([slot, entry, SCRATCH])
}

/// The entry of the page, as its table has it.
fn in_table(memory: &Memory<BareMmu>) -> Option<u64> {
    let (table, index) = memory.space.slot(&memory.mmu, SCRATCH)?;
    Some(memory.mmu.read(table, index))
}

#[unsafe(naked)]
unsafe extern "C" fn change(n: u64, slot: u64, entry: u64, va: u64) -> u64 {
    naked_asm!(
        "mov qword ptr [rsi], 0",
        "mov [rsi], rdx",
        "mov rax, rdx",
        "or rax, {software}",
        ".p2align 6",
        "2:",
        "mov [rsi], rax",
        "mov [rsi], rdx",
        "mov [rsi], rax",
        "mov [rsi], rdx",
        "sub rdi, 4",
        "jnz 2b",
        "ret",
        software = const SOFTWARE,
    )
}

/// [`change`] without the changes that do not matter.
#[unsafe(naked)]
extern "C" fn change_once(n: u64) {
    naked_asm!(
        "mov rsi, [rip + {slot}]",
        "mov rdx, [rip + {entry}]",
        "mov qword ptr [rsi], 0",
        "mov [rsi], rdx",
        ".p2align 6",
        "2:",
        "sub rdi, 4",
        "jnz 2b",
        "ret",
        slot = sym SLOT,
        entry = sym ENTRY,
    )
}

#[unsafe(naked)]
unsafe extern "C" fn map(n: u64, slot: u64, entry: u64, va: u64) -> u64 {
    naked_asm!(
        "xor eax, eax",
        ".p2align 6",
        "2:",
        ".rept 4",
        "mov [rsi], rdx",
        "movzx r8d, byte ptr [rcx]",
        "mov qword ptr [rsi], 0",
        "invlpg [rcx]",
        "add rax, r8",
        ".endr",
        "sub rdi, 4",
        "jnz 2b",
        "ret",
    )
}
