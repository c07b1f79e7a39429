//! Page-table entries and the root, changed at once rather than queued.

use paravane_guest::abi::domid::DOMID_SELF;
use paravane_guest::abi::hypercall::MMUEXT_OP;
use paravane_guest::abi::mmu::{MMUEXT_NEW_BASEPTR, MmuextOp, UVMF_INVLPG, UVMF_NONE};
use paravane_guest::abi::pte;
use paravane_guest::hypercall::{self, trap::update_va_mapping};

use super::done;
use crate::machine::primitive::{Did, Primitive, SCRATCH_WORD, release_scratch_page, scratch_page};
use crate::machine::pv::PvMmu;
use crate::memory::paging::{MapError, Mmu};
use crate::memory::{Memory, SCRATCH};

/// A bit that only software reads.
const SOFTWARE: u64 = 1 << 9;

/// A change of an entry that no translation depends on.
pub const PTEMOD: Primitive<PvMmu> = Primitive {
    prepare,
    finish: |memory, [entry, ..]| release_scratch_page(memory, entry),
    ..Primitive::new(
        "ptemod",
        "toggle a bit that only software reads in the entry of a page in use",
        change,
        |memory, did| {
            let [entry, va, _] = did.arguments;
            // SAFETY: `prepare` mapped it.
            let word = unsafe { (va as *const u64).read_volatile() };
            in_table(memory) == Some(entry) && word == SCRATCH_WORD
        },
    )
};

/// A page comes and goes.
pub const PTEMAP: Primitive<PvMmu> = Primitive {
    prepare,
    unmapped: true,
    finish: |memory, [entry, ..]| release_scratch_page(memory, entry),
    ..Primitive::new("ptemap", "map a page, read it, unmap it", map, |memory, did: &Did| {
        in_table(memory) == Some(0) && did.returned == did.last * (SCRATCH_WORD & 0xff)
    })
};

/// The same address space once more.
pub const CR3WR: Primitive<PvMmu> = Primitive {
    prepare: |memory| Ok([pte::mfn(memory.mmu.entry(memory.space.root(), 0)), 0, 0]),
    ..Primitive::new("cr3wr", "make the same address space the current one", switch, |_, did| {
        did.returned == did.last
    })
};

fn prepare(memory: &mut Memory<PvMmu>) -> Result<[u64; 3], MapError> {
    let (_, _, entry) = scratch_page(memory)?;
    Ok([entry, SCRATCH, SCRATCH])
}

/// The entry of the page, as its table has it.
fn in_table(memory: &Memory<PvMmu>) -> Option<u64> {
    let (table, index) = memory.space.slot(&memory.mmu, SCRATCH)?;
    Some(memory.mmu.read(table, index))
}

extern "C" fn change(n: u64, entry: u64, va: u64, _: u64) -> u64 {
    // SAFETY: the page stays mapped as it is.
    let set = |entry| done(unsafe { update_va_mapping(va, entry, UVMF_NONE) });
    for _ in 0..n / 4 {
        set(entry | SOFTWARE);
        set(entry);
        set(entry | SOFTWARE);
        set(entry);
    }
    0
}

extern "C" fn map(n: u64, entry: u64, va: u64, _: u64) -> u64 {
    let mut sum = 0;
    for _ in 0..n {
        // SAFETY: a page that nothing but this loop uses.
        unsafe {
            done(update_va_mapping(va, entry, UVMF_NONE));
            sum += u64::from((va as *const u8).read_volatile());
            done(update_va_mapping(va, 0, UVMF_INVLPG));
        }
    }
    sum
}

extern "C" fn switch(n: u64, root: u64, _: u64, _: u64) -> u64 {
    let op = MmuextOp { cmd: MMUEXT_NEW_BASEPTR, arg1: root, ..MmuextOp::default() };
    for _ in 0..n {
        // SAFETY: the root in use.
        done(unsafe { hypercall::call(MMUEXT_OP, [(&raw const op).addr() as u64, 1, 0, DOMID_SELF.into()]) });
    }
    n
}
