//! Each operation: its effects and its errors.

use paravane_abi::mmu::*;
use paravane_abi::{Errno, addr, pte};

use super::super::frame::{FrameType, Level, Owner};
use super::super::{GUEST_KERNEL, Stop};
use super::*;

const fn refused(errno: Errno) -> Result<(), Stop> {
    Err(Stop::Refused(errno))
}

#[test]
fn boot_tables_are_typed_pinned_and_completed() {
    let w = World::new();
    for (pfn, level) in [(L4, Level::L4), (L3, Level::L3), (L2, Level::L2), (L1, Level::L1)] {
        assert_eq!(w.held(pfn), Some(FrameType::Table(level)));
    }
    assert_eq!(w.held(FREE), Some(FrameType::Writable));
    assert_eq!(w.load(L4, 257), pte::make(1, TABLE));
    assert_eq!(w.space.root(), w.mfn(L4));
    assert_eq!(w.tables.kernel_root(), w.mfn(L4));
}

#[test]
fn boot_tables_that_are_writable_are_refused() {
    let World { memory, layout, .. } = World::new();
    let l1_maps_itself = Maddr(layout.hypervisor_frames() * 4096 + L1 * 4096 + L1 * 8);
    memory.store_u64(l1_maps_itself, pte::make(layout.hypervisor_frames() + L1, RW)).unwrap();
    let mut direct = DirectPaging::new(&layout, [0; RESERVED_ENTRIES]).unwrap();
    let root = Mfn(layout.hypervisor_frames() + L4);
    let mut log = TableLog::default();
    assert_eq!(direct.pin_initial(&memory, &mut log, root).map(|_| ()), Err(Errno::EBUSY));
    for mfn in 0..layout.total {
        assert_eq!(direct.frame(Mfn(mfn)).unwrap().refs(), 0, "frame {mfn} after the refusal");
    }
}

#[test]
fn entries_are_adjusted_and_logged() {
    let mut w = World::new();
    let asked = w.entry(FREE, P | pte::RW | pte::GLOBAL);
    let old = w.load(L1, FREE);
    let at = w.at(L1, FREE);
    assert_eq!(w.direct.mmu_update_one(&w.memory, &mut w.log, at.0, asked), Ok(()));
    let stored = w.entry(FREE, RW | GUEST_KERNEL);
    assert_eq!(w.load(L1, FREE), stored);
    let told: Vec<_> = w.space.pending(&w.log).writes.iter().copied().collect();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].entry, told[0].old, told[0].new, told[0].level), (at, old, stored, 1));
    assert_eq!(w.space.pending(&w.log).flush, Flush::None, "the guest has to ask for a flush");
    w.enter();
}

#[test]
fn accessed_and_dirty_bits_are_kept_when_asked() {
    let mut w = World::new();
    let ad = pte::ACCESSED | pte::DIRTY;
    assert_eq!(w.update(L1, FREE, w.entry(FREE, RW | ad)), Ok(()));
    assert_eq!(w.raw_update(w.at(L1, FREE).0 | MMU_PT_UPDATE_PRESERVE_AD, w.entry(FREE, RO)), Ok(()));
    assert_eq!(w.load(L1, FREE), w.entry(FREE, RO | ad));
    assert_eq!(w.raw_update(w.at(L1, FREE).0 | MMU_PT_UPDATE_NO_TRANSLATE, w.entry(FREE, RO)), Ok(()));
    assert_eq!(w.load(L1, FREE), w.entry(FREE, RO));
}

#[test]
fn l1_entries_that_are_refused() {
    let mut w = World::new();
    for flag in [pte::PAT, pte::PCD, pte::PWT] {
        assert_eq!(w.update(L1, 30, w.entry(FREE, RW | flag)), EINVAL);
    }
    let hypervisor = pte::make(w.layout.engine.start, RO);
    assert_eq!(w.update(L1, 30, hypervisor), EBUSY);
    assert_eq!(w.update(L1, 30, pte::make(w.layout.total, RO)), refused(Errno::EPERM));
    assert_eq!(w.update(L1, 30, pte::make(u64::MAX, RO)), EINVAL);
    for table in [L4, L3, L2, L1] {
        assert_eq!(w.update(L1, 30, w.entry(table, RW)), EBUSY);
        assert_eq!(w.update(L1, 30, w.entry(table, RO)), Ok(()), "reading one's tables is fine");
    }
    assert_eq!(w.load(L1, 30), w.entry(L1, RO));
}

#[test]
fn shared_frames_of_the_hypervisor_can_be_mapped() {
    let mut w = World::new();
    let shared = pte::make(w.layout.shared_info.0, RW);
    let m2p = w.layout.m2p.start;
    assert_eq!(w.update(L1, 30, shared), Ok(()));
    assert_eq!(w.update(L1, 31, pte::make(m2p, RO)), Ok(()));
    assert_eq!(w.update(L1, 31, pte::make(m2p, RW)), EBUSY);
    assert_eq!(w.update(L1, 30, 0), Ok(()));
    assert_eq!(w.update(L1, 31, 0), Ok(()));
    for mfn in [w.layout.shared_info.0, m2p] {
        assert_eq!(w.update(L2, 1, pte::make(mfn, TABLE)), EINVAL, "but never as a table");
    }
}

#[test]
fn updates_go_to_tables_and_to_plain_memory() {
    let mut w = World::new();
    assert_eq!(w.update(FREE, 7, 0x1234_5678), Ok(()), "a frame that may become a table");
    assert_eq!(w.load(FREE, 7), 0x1234_5678);
    let outside = Mfn(w.layout.total).maddr().0;
    for at in [outside, w.layout.shared_info.maddr().0, 0, !7] {
        assert_eq!(w.raw_update(at, 0), EINVAL);
    }
    for bits in 4..8 {
        assert_eq!(w.raw_update(w.at(L1, 30).0 | bits, 0), refused(Errno::ENOSYS));
    }
}

#[test]
fn the_m2p_is_updated_for_ones_own_frames() {
    let mut w = World::new();
    let ptr = w.mfn(FREE).maddr().0 | MMU_MACHPHYS_UPDATE;
    assert_eq!(w.raw_update(ptr, 0x77), Ok(()));
    let slot = Maddr(Mfn(w.layout.m2p.start).maddr().0 + w.mfn(FREE).0 * 8);
    assert_eq!(w.memory.load_u64(slot), Ok(0x77));
    for foreign in [w.layout.shared_info, Mfn(w.layout.total), Mfn(u64::MAX >> 12)] {
        assert_eq!(w.raw_update(foreign.maddr().0 & !7 | MMU_MACHPHYS_UPDATE, 0), EINVAL);
    }
}

#[test]
fn the_hypervisors_slots_are_its_own() {
    let mut w = World::new();
    for slot in 256..=271 {
        assert_eq!(w.update(L4, slot, 0), EINVAL);
        assert_eq!(w.update(L4, slot, w.entry(L3, TABLE)), EINVAL);
    }
    for slot in [255, 272] {
        assert_eq!(w.update(L4, slot, w.entry(L3, TABLE)), Ok(()));
    }
    w.table(10, 260, 0xdead_beef);
    assert_eq!(w.pin(10, Level::L4), Ok(()), "what stood there does not matter");
    assert_eq!(w.load(10, 260), 0);
    assert_eq!(w.load(10, 257), pte::make(1, TABLE));
}

#[test]
fn linking_validates_and_unlinking_lets_go() {
    let mut w = World::new();
    w.table(10, 5, w.entry(FREE, P | pte::RW));
    assert_eq!(w.update(L2, 1, w.entry(10, TABLE & !pte::USER)), Ok(()));
    assert_eq!(w.held(10), Some(FrameType::Table(Level::L1)));
    assert_eq!(w.load(10, 5), w.entry(FREE, RW | GUEST_KERNEL));
    assert_eq!(w.load(L2, 1), w.entry(10, TABLE), "user access is needed at every level");
    assert_eq!(w.update(L1, 10, w.entry(10, RW)), EBUSY);
    assert_eq!(w.update(L2, 2, w.entry(10, TABLE)), Ok(()), "linked twice");
    assert_eq!(w.update(L2, 1, 0), Ok(()));
    assert_eq!(w.held(10), Some(FrameType::Table(Level::L1)));
    assert_eq!(w.update(L2, 2, 0), Ok(()));
    assert_eq!(w.held(10), None);
    assert_eq!(w.update(L1, 10, w.entry(10, RW)), Ok(()));
}

#[test]
fn a_table_with_a_bad_entry_leaves_no_trace() {
    let mut w = World::new();
    w.poke(10, 1, w.entry(FREE, RW));
    w.poke(10, 2, w.entry(11, RO));
    w.table(10, 3, w.entry(L4, RW));
    let before = w.direct.frame(w.mfn(FREE)).unwrap();
    assert_eq!(w.update(L2, 1, w.entry(10, TABLE)), EBUSY);
    assert_eq!(w.direct.frame(w.mfn(FREE)).unwrap(), before);
    assert_eq!(w.load(L2, 1), 0);
    assert_eq!(w.held(10), None);
}

#[test]
fn types_do_not_mix() {
    let mut w = World::new();
    for wrong in [L4, L3, L2, FREE] {
        assert_eq!(w.update(L2, 1, w.entry(wrong, TABLE)), EINVAL);
    }
    for (wrong, level) in [(L1, Level::L2), (L2, Level::L1), (L4, Level::L3), (FREE, Level::L1)] {
        assert_eq!(w.pin(wrong, level), EINVAL);
    }
    assert_eq!(w.update(L3, 1, w.entry(L1, TABLE)), EINVAL);
    for flag in [pte::PSE, pte::PCD, pte::PWT, pte::GLOBAL] {
        assert_eq!(w.update(L3, 1, w.entry(L2, TABLE | flag)), EINVAL);
    }
}

#[test]
fn pins_come_and_go_once() {
    let mut w = World::new();
    w.protect(10);
    assert_eq!(w.pin(10, Level::L1), Ok(()));
    assert_eq!(w.pin(10, Level::L1), EINVAL);
    assert_eq!(w.update(L1, 10, w.entry(10, RW)), EBUSY);
    assert_eq!(w.unpin(10), Ok(()));
    assert_eq!(w.unpin(10), EINVAL);
    assert_eq!(w.update(L1, 10, w.entry(10, RW)), Ok(()));
    for mfn in [0, w.layout.shared_info.0, w.layout.total, u64::MAX] {
        assert_eq!(w.ext(MMUEXT_PIN_L1_TABLE, mfn), EINVAL);
        assert_eq!(w.ext(MMUEXT_UNPIN_TABLE, mfn), EINVAL);
    }
}

#[test]
fn roots_are_validated_and_held() {
    let mut w = World::new();
    w.table(10, 0, w.entry(L3, TABLE));
    assert_eq!(w.ext(MMUEXT_NEW_BASEPTR, w.mfn(10).0), Ok(()));
    assert_eq!((w.space.root(), w.tables.kernel_root()), (w.mfn(10), w.mfn(10)));
    assert_eq!(w.unpin(L4), Ok(()));
    assert_eq!(w.held(L4), None, "the old root is only a frame now");
    assert_eq!(w.ext(MMUEXT_NEW_USER_BASEPTR, w.mfn(10).0), Ok(()));
    assert_eq!(w.tables.user_root(), Some(w.mfn(10)));
    assert_eq!(w.ext(MMUEXT_NEW_USER_BASEPTR, w.mfn(L3).0), EINVAL);
    assert_eq!(w.ext(MMUEXT_NEW_USER_BASEPTR, 0), Ok(()));
    assert_eq!(w.tables.user_root(), None);
    for bad in [0, w.mfn(FREE).0, w.layout.total, u64::MAX] {
        assert_eq!(w.ext(MMUEXT_NEW_BASEPTR, bad), EINVAL);
    }
    assert_eq!(w.tables.kernel_root(), w.mfn(10));
}

#[test]
fn update_va_mapping_finds_the_entry_and_flushes() {
    let mut w = World::new();
    let va = 30 << 12;
    let map = |w: &mut World, va, val, flags| {
        let r = w.direct.update_va_mapping(&w.memory, &mut w.log, &mut w.space, va, val, flags);
        let scope = w.space.pending(&w.log).flush;
        w.enter();
        (r, scope)
    };
    let entry = w.entry(FREE, RW);
    assert_eq!(map(&mut w, va, entry, UVMF_NONE), (Ok(()), Flush::None));
    assert_eq!(w.load(L1, 30), entry);
    assert_eq!(map(&mut w, va, 0, UVMF_INVLPG | UVMF_ALL), (Ok(()), Flush::Page(va)));
    assert_eq!(map(&mut w, va, 0, UVMF_TLB_FLUSH), (Ok(()), Flush::All));
    assert_eq!(map(&mut w, 1 << 30, 0, UVMF_TLB_FLUSH), (EINVAL, Flush::None));
    assert_eq!(map(&mut w, 1 << 50, 0, UVMF_NONE).0, EINVAL);
    assert_eq!(map(&mut w, addr::HYPERVISOR_VIRT_START, 0, UVMF_NONE).0, EINVAL);
    assert_eq!(map(&mut w, 257 << 39, 0, UVMF_NONE).0, EINVAL, "the hypervisor's tables are not the guest's");
}

#[test]
fn trapped_stores_are_updates_of_l1_tables() {
    let mut w = World::new();
    let store = |w: &mut World, at: Maddr, value, size| {
        w.op(|d, m, p, _, _| d.emulate_pte_store(m, p, at, value, size))
    };
    let entry = w.entry(FREE, RW);
    let at = w.at(L1, 30);
    assert_eq!(store(&mut w, at, entry, 8), Ok(()));
    assert_eq!(store(&mut w, at, 0, 4), Ok(()));
    assert_eq!(w.load(L1, 30), entry & !0xffff_ffff);
    assert_eq!(store(&mut w, Maddr(at.0 + 1), 0xab, 1), Ok(()));
    assert_eq!(w.load(L1, 30) & 0xffff, 0xab00);
    assert_eq!(store(&mut w, Maddr(at.0 + 1), 0, 2), EINVAL);
    for size in [0, 3, 16, 255] {
        assert_eq!(store(&mut w, at, 0, size), EINVAL);
    }
    let writable_table = w.entry(L1, RW);
    assert_eq!(store(&mut w, at, writable_table, 8), EBUSY);
    for elsewhere in [w.at(L2, 1), w.at(FREE, 0), Maddr(0), Mfn(w.layout.total).maddr()] {
        assert_eq!(store(&mut w, elsewhere, 0, 8), EINVAL);
    }
}

#[test]
fn frames_are_cleared_and_copied_unless_they_are_tables() {
    let mut w = World::new();
    w.poke(FREE, 3, 0x55);
    let (from, to) = (w.mfn(FREE).0, w.mfn(FREE + 1).0);
    assert_eq!(w.ext2(MMUEXT_COPY_PAGE, to, from), Ok(()));
    assert_eq!(w.load(FREE + 1, 3), 0x55);
    assert_eq!(w.ext(MMUEXT_CLEAR_PAGE, from), Ok(()));
    assert_eq!(w.load(FREE, 3), 0);
    for bad in [w.mfn(L1).0, w.layout.shared_info.0, w.layout.total, u64::MAX] {
        assert_eq!(w.ext(MMUEXT_CLEAR_PAGE, bad), EINVAL);
        assert_eq!(w.ext2(MMUEXT_COPY_PAGE, bad, from), EINVAL);
    }
    assert_eq!(w.ext2(MMUEXT_COPY_PAGE, to, w.mfn(L1).0), Ok(()), "a table may be read");
    assert_eq!(w.ext2(MMUEXT_COPY_PAGE, to, w.layout.engine.start), EINVAL);
}

#[test]
fn flushes_and_the_commands_that_are_refused() {
    let mut w = World::new();
    let ext = |w: &mut World, cmd, arg1| {
        let op = MmuextOp { cmd, arg1, ..MmuextOp::default() };
        let r = w.direct.mmuext_one(&w.memory, &mut w.log, &mut w.space, &mut w.tables, &op);
        let scope = w.space.pending(&w.log).flush;
        w.enter();
        (r, scope)
    };
    for cmd in [MMUEXT_TLB_FLUSH_LOCAL, MMUEXT_TLB_FLUSH_MULTI, MMUEXT_TLB_FLUSH_ALL] {
        assert_eq!(ext(&mut w, cmd, 0), (Ok(()), Flush::All));
    }
    for cmd in [MMUEXT_INVLPG_LOCAL, MMUEXT_INVLPG_MULTI, MMUEXT_INVLPG_ALL] {
        assert_eq!(ext(&mut w, cmd, 0x5000), (Ok(()), Flush::Page(0x5000)));
        assert_eq!(ext(&mut w, cmd, addr::HYPERVISOR_VIRT_START), (Ok(()), Flush::None));
    }
    for cmd in [MMUEXT_MARK_SUPER, MMUEXT_UNMARK_SUPER] {
        assert_eq!(ext(&mut w, cmd, 0).0, refused(Errno::EOPNOTSUPP));
    }
    for cmd in [MMUEXT_FLUSH_CACHE, MMUEXT_FLUSH_CACHE_GLOBAL] {
        assert_eq!(ext(&mut w, cmd, 0).0, refused(Errno::EACCES));
    }
    for cmd in [14, 21, u32::MAX] {
        assert_eq!(ext(&mut w, cmd, 0).0, refused(Errno::ENOSYS));
    }
    assert_eq!(w.ext2(MMUEXT_SET_LDT, 0x2000, 16), Ok(()));
    assert_eq!(w.tables.ldt(), (0x2000, 16));
    assert_eq!(w.ext2(MMUEXT_SET_LDT, 0x2001, 16), EINVAL);
}

#[test]
fn descriptor_pages_are_out_of_the_guests_hands() {
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const TSS: u64 = 0x0000_8900_0000_0067;
    let mut w = World::new();
    w.poke(10, 2, CODE);
    let set = |w: &mut World, frames: &[u64], n| w.op(|d, m, p, s, t| d.set_gdt(m, p, s, t, frames, n));
    let gdt = [w.mfn(10).0];
    assert_eq!(set(&mut w, &gdt, 16), EINVAL, "it is mapped writable");
    w.protect(10);
    assert_eq!(set(&mut w, &gdt, 16), Ok(()));
    assert_eq!(w.load(10, 2), CODE | 3 << 45);
    assert_eq!(w.held(10), Some(FrameType::SegDesc));
    assert_eq!(w.update(L1, 10, w.entry(10, RW)), EBUSY);
    assert_eq!(w.update(10, 0, 0), EINVAL);
    let desc = |w: &mut World, at, d| w.op(|dp, m, p, _, _| dp.update_descriptor(m, p, at, d));
    let at = w.at(10, 3);
    assert_eq!(desc(&mut w, at, CODE), Ok(()));
    assert_eq!(w.load(10, 3), CODE | 3 << 45);
    assert_eq!(desc(&mut w, at, TSS), EINVAL);
    assert_eq!(desc(&mut w, Maddr(at.0 + 4), 0), EINVAL);
    for table in [w.at(L1, 30), Maddr(0)] {
        assert_eq!(desc(&mut w, table, CODE), EINVAL);
    }
    assert_eq!(set(&mut w, &gdt, 513), EINVAL, "two frames are needed");
    assert_eq!(set(&mut w, &[gdt[0]; 15], 7169), EINVAL);
    w.poke(11, 0, TSS);
    w.protect(11);
    let bad = [w.mfn(10).0, w.mfn(11).0];
    assert_eq!(set(&mut w, &bad, 1024), EINVAL);
    assert_eq!(w.tables.gdt_frames().collect::<Vec<_>>(), [w.mfn(10)], "the old GDT stays");
    assert_eq!(set(&mut w, &[], 0), Ok(()));
    assert_eq!(w.update(L1, 10, w.entry(10, RW)), Ok(()));
}

#[test]
fn frames_are_given_up_only_when_unused() {
    let mut w = World::new();
    let take = |w: &mut World, mfn| w.op(|d, m, p, _, _| d.take_from_guest(m, p, mfn));
    let mfn = w.mfn(FREE);
    assert_eq!(take(&mut w, mfn), EBUSY);
    assert_eq!(w.update(L1, FREE, 0), Ok(()));
    assert_eq!(take(&mut w, mfn), Ok(()));
    assert_eq!(take(&mut w, mfn), EINVAL);
    assert_eq!(w.update(L1, FREE, w.entry(FREE, RO)), EBUSY);
    assert_eq!(w.direct.give_to_guest(&w.memory, mfn, FREE), Ok(()));
    assert_eq!(w.direct.give_to_guest(&w.memory, mfn, FREE), Err(Errno::EINVAL));
    assert_eq!(w.update(L1, FREE, w.entry(FREE, RW)), Ok(()));
    let engine = Mfn(w.layout.engine.start);
    assert_eq!(w.direct.give_to_guest(&w.memory, engine, 0), Err(Errno::EINVAL));
    assert_eq!(w.direct.frame(engine).unwrap().owner(), Owner::Hypervisor);
}

#[test]
fn the_host_writes_to_ordinary_memory_only() {
    let mut w = World::new();
    let (table, page) = (w.mfn(L1), w.mfn(10));
    assert_eq!(w.direct.get_writable(&w.memory, &mut w.log, table), EINVAL);
    w.protect(10);
    assert_eq!(w.direct.get_writable(&w.memory, &mut w.log, page), Ok(()));
    let (slot, link) = (w.at(L2, 1).0, w.entry(10, TABLE));
    assert_eq!(w.direct.mmu_update_one(&w.memory, &mut w.log, slot, link), EINVAL);
    w.direct.put_writable(page);
    assert_eq!(w.update(L2, 1, w.entry(10, TABLE)), Ok(()));
}

#[test]
fn a_run_is_held_whole_or_not_at_all() {
    let mut w = World::new();
    for pfn in 8..12 {
        w.protect(pfn);
    }
    let is_held = |w: &World| (8..12).map(|pfn| w.held(pfn)).collect::<Vec<_>>();
    let run = |w: &mut World, first, frames| {
        let first = w.mfn(first);
        w.direct.get_writable_run(&w.memory, &mut w.log, first, frames)
    };
    let before = is_held(&w);
    assert_eq!(run(&mut w, L1, 9), EINVAL, "a table comes first");
    assert_eq!(run(&mut w, 8, FRAMES), EINVAL, "past the guest's frames");
    assert_eq!(run(&mut w, 8, u64::MAX), EINVAL);
    assert_eq!(is_held(&w), before);
    assert_eq!(w.pin(10, Level::L1).and_then(|()| w.unpin(10)), Ok(()));
    for flush in [Flush::All, Flush::None] {
        assert_eq!(run(&mut w, 8, 4), Ok(()));
        assert_eq!(is_held(&w), [Some(FrameType::Writable); 4]);
        assert_eq!(w.space.pending(&w.log).flush, flush, "one was a table, once");
        w.direct.put_writable_run(w.mfn(8), 4);
        assert_eq!(is_held(&w), before);
        w.enter();
    }
}

#[test]
fn reused_tables_are_logged() {
    let mut w = World::new();
    w.protect(10);
    let pin = MmuextOp { cmd: MMUEXT_PIN_L1_TABLE, arg1: w.mfn(10).0, ..MmuextOp::default() };
    assert_eq!(w.direct.mmuext_one(&w.memory, &mut w.log, &mut w.space, &mut w.tables, &pin), Ok(()));
    assert_eq!(w.reused(), []);
    w.enter();
    assert_eq!(w.unpin(10), Ok(()));
    assert_eq!(w.direct.mmuext_one(&w.memory, &mut w.log, &mut w.space, &mut w.tables, &pin), Ok(()));
    assert_eq!(w.reused(), [w.mfn(10)]);
    w.enter();
}
