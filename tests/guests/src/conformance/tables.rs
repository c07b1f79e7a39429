//! Page tables without the SDK: what `mmu_update`, `mmuext_op` and `update_va_mapping` must refuse.
//!
//! An update that is wrongly accepted here does not damage this kernel.

use paravane_guest::abi::addr::table_index;
use paravane_guest::abi::domid::{DOMID_SELF, DomId};
use paravane_guest::abi::hypercall::{MMU_UPDATE, MMUEXT_OP, UPDATE_VA_MAPPING};
use paravane_guest::abi::mmu::*;
use paravane_guest::abi::{Errno, pte};
use paravane_guest::hypercall::call;
use paravane_guest::memory::Pfn;
use paravane_guest::paging::{FrameSource, PageFlags};

use super::Bench;
use super::calls::NOWHERE;
use crate::probe;

/// The address of a page in the lower half that no other check uses, with its own table.
const PLACE: u64 = 0x10_0000_0000;

/// Makes updates. Returns how many were done, and the result.
fn updates(list: &[MmuUpdate], owner: DomId) -> (u32, Result<u64, Errno>) {
    let mut done = 0_u32;
    let args = [list.as_ptr() as u64, list.len() as u64, &raw mut done as u64, u64::from(owner)];
    // SAFETY: the callers' updates are refused, or change entries of `PLACE` only.
    let outcome = unsafe { call(MMU_UPDATE, args) };
    // SAFETY: the number is initialised; the hypervisor may have written to it.
    (unsafe { (&raw const done).read_volatile() }, outcome)
}

fn update(ptr: u64, val: u64) -> Result<u64, Errno> {
    updates(&[MmuUpdate { ptr, val }], DOMID_SELF).1
}

fn extended(cmd: u32, arg1: u64) -> Result<u64, Errno> {
    let op = MmuextOp { cmd, arg1, ..MmuextOp::default() };
    // SAFETY: as for `updates`.
    unsafe { call(MMUEXT_OP, [&raw const op as u64, 1, 0, u64::from(DOMID_SELF)]) }
}

fn va_mapping(va: u64, entry: u64) -> Result<u64, Errno> {
    // SAFETY: as for `updates`.
    unsafe { call(UPDATE_VA_MAPPING, [va, entry, UVMF_INVLPG]) }
}

const READ_ONLY: u64 = pte::PRESENT | pte::USER | pte::ACCESSED;
const WRITABLE: u64 = READ_ONLY | pte::RW | pte::DIRTY;

/// Machine addresses and frames that the checks use.
struct Pieces {
    /// The L1 entry of `PLACE`.
    entry: u64,
    /// The L4 table, and the L1 table of `PLACE`.
    root: u64,
    table: u64,
    /// An ordinary frame, mapped writable in the direct map.
    page: u64,
}

/// Maps a page at `PLACE` so that tables lead there.
fn pieces(bench: &mut Bench) -> Option<Pieces> {
    let space = bench.mmu.kernel_space();
    let page = bench.frames.take()?;
    space.map(&mut bench.mmu, &mut bench.frames, PLACE, page, PageFlags::WRITE).ok()?;
    bench.mmu.flush().ok()?;
    let memory = bench.mmu.memory();
    let mut table = space.root();
    for level in [4, 3, 2] {
        let entry = bench.mmu.read(table, table_index(PLACE, level));
        table = memory.pfn(paravane_guest::memory::Mfn(pte::mfn(entry)))?;
    }
    let mfn = |pfn: Pfn| memory.mfn(pfn).map(|m| m.0);
    Some(Pieces { entry: mfn(table)? << 12, root: mfn(space.root())?, table: mfn(table)?, page: mfn(page)? })
}

pub(super) fn run(bench: &mut Bench) {
    let Some(pieces) = pieces(bench) else { return bench.suite.holds("set-up", false) };
    accepted(bench, &pieces);
    entries(bench, &pieces);
    arguments(bench, &pieces);
    super::tables_ext::run(bench, pieces.root, pieces.table, pieces.page, extended);
    let space = bench.mmu.kernel_space();
    let unmapped = space.unmap(&mut bench.mmu, PLACE).map(|mfn| mfn.0);
    bench.suite.equal("unmap", unmapped.ok(), Some(pieces.page));
    bench.suite.holds("flush", bench.mmu.flush().is_ok());
    bench.suite.holds("nothing-is-there", probe::read(PLACE).is_err());
}

fn accepted(bench: &mut Bench, p: &Pieces) {
    let suite = &mut bench.suite;
    // SAFETY: the page belongs to this test.
    suite.equal("write", unsafe { probe::write(PLACE, 77) }, Ok(()));
    suite.equal("read-only", update(p.entry, pte::make(p.page, READ_ONLY)), Ok(0));
    suite.equal("invlpg", extended(MMUEXT_INVLPG_LOCAL, PLACE), Ok(0));
    // SAFETY: as above.
    suite.holds("takes-effect", unsafe { probe::write(PLACE, 78) }.is_err());
    suite.equal("contents-stay", probe::read(PLACE), Ok(77));
    suite.equal("by-address", va_mapping(PLACE, pte::make(p.page, WRITABLE)), Ok(0));
    // SAFETY: as above.
    suite.equal("takes-effect-too", unsafe { probe::write(PLACE, 79) }, Ok(()));
    suite.equal("table-read-only", update(p.entry, pte::make(p.table, READ_ONLY)), Ok(0));
    suite.equal("tlb-flush", extended(MMUEXT_TLB_FLUSH_LOCAL, 0), Ok(0));
    suite.equal("table-at-place", probe::read(PLACE).map(pte::mfn), Ok(p.table));
    suite.equal("clear", update(p.entry, 0), Ok(0));
    suite.equal("again", va_mapping(PLACE, pte::make(p.page, WRITABLE)), Ok(0));
    let keep = p.entry | MMU_PT_UPDATE_PRESERVE_AD;
    suite.equal("preserve-ad", update(keep, pte::make(p.page, pte::PRESENT | pte::USER | pte::RW)), Ok(0));
    let flags = bench.mmu.kernel_space().translate(&bench.mmu, PLACE).map(|(_, flags)| flags);
    bench.suite.equal("translate", flags, Some(PageFlags::WRITE | PageFlags::USER));
}

fn entries(bench: &mut Bench, p: &Pieces) {
    let reserved_slot = p.root * 4096 + 256 * 8;
    let (first, l2) = (0, second_level(bench));
    let privileged = bench.privileged;
    let suite = &mut bench.suite;
    suite.refused("l1-table-writable", update(p.entry, pte::make(p.table, WRITABLE)));
    suite.refused("l4-table-writable", update(p.entry, pte::make(p.root, WRITABLE)));
    if !privileged {
        suite.refused("hypervisor-frame", update(p.entry, pte::make(first, READ_ONLY)));
        suite.refused("hypervisor-frame-writable", update(p.entry, pte::make(first, WRITABLE)));
    }
    suite.refused("no-frame", update(p.entry, pte::make(0xff_ffff_ffff, READ_ONLY)));
    suite.refused("l2-large-page", update(l2, pte::make(p.page & !511, WRITABLE | pte::PSE)));
    suite.refused("l2-writable-page-as-table", update(l2, pte::make(p.page, WRITABLE)));
    suite.refused("l2-wrong-level", update(l2, pte::make(p.root, WRITABLE)));
    suite.refused("l4-reserved-slot", update(reserved_slot, pte::make(p.page, READ_ONLY)));
    suite.refused("l4-itself", update(p.root * 4096 + 300 * 8, pte::make(p.root, WRITABLE)));
    suite.refused("by-address-table-writable", va_mapping(PLACE, pte::make(p.table, WRITABLE)));
    suite.refused("by-address-no-table", va_mapping(PLACE + (1 << 40), pte::make(p.page, WRITABLE)));
    suite.refused("by-address-hypervisor", va_mapping(0xffff_8000_0000_0000, pte::make(p.page, WRITABLE)));
    suite.refused("by-address-not-canonical", va_mapping(1 << 62, pte::make(p.page, WRITABLE)));
    suite.holds("still-there", bench.mmu.kernel_space().translate(&bench.mmu, PLACE).is_some());
}

/// The machine address of the L2 entry for `PLACE`.
fn second_level(bench: &Bench) -> u64 {
    let mut table = bench.mmu.kernel_space().root();
    let memory = bench.mmu.memory();
    for level in [4, 3] {
        let entry = bench.mmu.read(table, table_index(PLACE, level));
        table = memory.pfn(paravane_guest::memory::Mfn(pte::mfn(entry))).unwrap_or(table);
    }
    memory.mfn(table).map_or(0, |m| m.maddr()) + table_index(PLACE, 2) as u64 * 8
}

fn arguments(bench: &mut Bench, p: &Pieces) {
    let privileged = bench.privileged;
    let suite = &mut bench.suite;
    let good = MmuUpdate { ptr: p.entry, val: pte::make(p.page, WRITABLE) };
    let bad = MmuUpdate { ptr: p.entry, val: pte::make(p.table, WRITABLE) };
    let list = updates(&[good, bad, good], DOMID_SELF);
    suite.equal("done-counts-up-to-the-bad-one", (list.0, list.1.is_err()), (1, true));
    suite.equal("done-counts-all", updates(&[good, good], DOMID_SELF), (2, Ok(0)));
    suite.equal("empty-list", updates(&[], DOMID_SELF).1, Ok(0));
    suite.refused("unknown-command", update(p.entry | 4, good.val));
    suite.equal("no-such-domain", updates(&[good], 0x7000).1, Err(Errno::ESRCH));
    if !privileged {
        suite.equal("domain-0", updates(&[good], 0).1, Err(Errno::EPERM));
    }
    // SAFETY: a domain that does not exist has no tables to change.
    let tables_of_nobody = unsafe { call(MMU_UPDATE, [NOWHERE, 1, 0, 0x7001 << 16 | 0x7ff0]) };
    suite.equal("tables-of-no-domain", tables_of_nobody, Err(Errno::ESRCH));
    suite.refused("entry-in-hypervisor-frame", update(8, good.val));
    suite.refused("entry-nowhere", update(!7, good.val));
    // SAFETY: the hypervisor cannot read there.
    suite.equal("list-nowhere", unsafe { call(MMU_UPDATE, [NOWHERE, 1, 0, 0x7ff0]) }, Err(Errno::EFAULT));
    let m2p = update(p.page << 12 | MMU_MACHPHYS_UPDATE, 5);
    suite.equal("machphys-update", m2p, Ok(0));
    let pfn = bench.boot.free_frames()[1]
        .clone()
        .find(|pfn| bench.mmu.memory().mfn(Pfn(*pfn)).is_some_and(|m| m.0 == p.page));
    let back = update(p.page << 12 | MMU_MACHPHYS_UPDATE, pfn.unwrap_or_default());
    let suite = &mut bench.suite;
    suite.equal("machphys-update-back", back, Ok(0));
    suite.refused("machphys-of-hypervisor", update(MMU_MACHPHYS_UPDATE, 5));
}

pub(super) fn pins(bench: &mut Bench) {
    let (Some(page), Some(other)) = (bench.frames.take(), bench.frames.take()) else {
        return bench.suite.holds("set-up", false);
    };
    let memory = bench.mmu.memory();
    let mfn = memory.mfn(page).map_or(0, |m| m.0);
    // SAFETY: the frames belong to this test.
    let ready = unsafe {
        bench.mmu.clear(page);
        bench.mmu.clear(other);
        bench.mmu.make_read_only(page)
    };
    bench.suite.refused("writable-frame", extended(MMUEXT_PIN_L1_TABLE, mfn));
    bench.suite.holds("make-read-only", ready.and_then(|()| bench.mmu.flush()).is_ok());
    let suite = &mut bench.suite;
    suite.refused("unpin-what-is-not-pinned", extended(MMUEXT_UNPIN_TABLE, mfn));
    suite.equal("pin", extended(MMUEXT_PIN_L1_TABLE, mfn), Ok(0));
    suite.refused("pin-twice", extended(MMUEXT_PIN_L1_TABLE, mfn));
    suite.refused("pin-as-another-level", extended(MMUEXT_PIN_L2_TABLE, mfn));
    let writable = pte::make(mfn, WRITABLE);
    suite.refused("write-access-while-pinned", va_mapping(memory.va(page), writable));
    suite.refused("new-baseptr-to-an-l1", extended(MMUEXT_NEW_BASEPTR, mfn));
    suite.refused("clear-page-of-a-table", extended(MMUEXT_CLEAR_PAGE, mfn));
    let other = memory.mfn(other).map_or(0, |m| m.0);
    suite.equal("update-of-a-pinned-table", update(mfn << 12, pte::make(other, READ_ONLY)), Ok(0));
    suite.refused("bad-update-of-a-pinned-table", update(mfn << 12 | 8, pte::make(mfn, WRITABLE)));
    suite.equal("unpin", extended(MMUEXT_UNPIN_TABLE, mfn), Ok(0));
    suite.refused("unpin-twice", extended(MMUEXT_UNPIN_TABLE, mfn));
    suite.equal("write-access-after", va_mapping(memory.va(page), writable), Ok(0));
    // SAFETY: the page belongs to this test.
    suite.equal("write-after", unsafe { probe::write(memory.va(page), 1) }, Ok(()));
    suite.refused("new-baseptr-to-a-page", extended(MMUEXT_NEW_BASEPTR, mfn));
    suite.refused("pin-hypervisor-frame", extended(MMUEXT_PIN_L1_TABLE, 0));
    suite.refused("pin-no-frame", extended(MMUEXT_PIN_L4_TABLE, u64::MAX >> 12));
}

/// Sets a frame's entry in the machine-to-physical table.
pub(super) fn machphys(mfn: u64, pfn: u64) -> Result<u64, Errno> {
    update(mfn << 12 | MMU_MACHPHYS_UPDATE, pfn)
}
