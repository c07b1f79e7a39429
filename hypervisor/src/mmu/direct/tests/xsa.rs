//! Holes that Xen's PV MMU once had, by advisory, as a guest would try them here.
//!
//! Facts: the advisories' titles and texts (xenbits.xen.org/xsa). Where the mistake cannot be made here because
//! the feature does not exist, the test shows that the attempt ends in an error.

use paravane_abi::addr::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START};
use paravane_abi::mmu::*;
use paravane_abi::pte;

use super::super::frame::{Frame, FrameType, Level};
use super::*;

/// XSA-45: tearing down big page tables took unbounded time. Here it stops and restarts.
#[test]
fn xsa_45_long_operations_are_preemptible() {
    let mut w = World::new();
    w.direct.work.limit = 4 * 512;
    for pfn in 10..20 {
        w.poke(pfn, 0, 0);
        w.protect(pfn);
        w.update(L2, pfn, w.entry(pfn, TABLE)).unwrap();
    }
    let mut other = w.mfn(21).0;
    w.poke(21, 0, 0);
    w.protect(21);
    assert_eq!(w.ext(MMUEXT_NEW_USER_BASEPTR, other), Ok(()));
    // The kernel's tree loses its last reference: thirteen tables, four at a time.
    assert_eq!(w.unpin(L4), Ok(()));
    assert_eq!(w.ext(MMUEXT_NEW_BASEPTR, other), Ok(()));
    assert_eq!(w.held(10), Some(FrameType::Table(Level::L1)), "not all at once");
    let mut restarts = 0;
    other = w.mfn(22).0;
    while w.ext(MMUEXT_CLEAR_PAGE, other) == Err(Stop::Restart) {
        restarts += 1;
    }
    assert!((1..10).contains(&restarts), "{restarts}");
    for pfn in [L4, L3, L2, L1].into_iter().chain(10..20) {
        assert_eq!(w.held(pfn), None, "frame {pfn}");
    }
}

/// XSA-148: an L2 entry became a writable superpage because PSE was not masked.
#[test]
fn xsa_148_no_superpage_at_any_level_by_any_way() {
    let mut w = World::new();
    for (table, child) in [(L4, L3), (L3, L2), (L2, L1)] {
        let superpage = w.entry(child, TABLE | pte::PSE);
        assert_eq!(w.update(table, 0, superpage), EINVAL, "over the present entry, same frame");
        assert_eq!(w.update(table, 9, superpage), EINVAL);
        assert_eq!(w.update(table, 9, pte::make(0, TABLE | pte::PSE)), EINVAL);
        let keep = w.at(table, 0).0 | MMU_PT_UPDATE_PRESERVE_AD;
        assert_eq!(w.raw_update(keep, superpage), EINVAL);
    }
    for (level, child) in [(Level::L2, L1), (Level::L3, L2), (Level::L4, L3)] {
        let pfn = 10 + u64::from(level.number());
        w.table(pfn, 0, w.entry(child, TABLE | pte::PSE));
        assert_eq!(w.pin(pfn, level), EINVAL, "in a table that is validated");
    }
    assert_eq!(w.update(L1, 9, w.entry(FREE, RW | pte::PSE)), EINVAL);
}

/// XSA-182: a fast path let flags change that turned a read-only self map into a writable one.
#[test]
fn xsa_182_no_self_map_to_make_writable() {
    let mut w = World::new();
    for (table, level) in [(L4, Level::L4), (L3, Level::L3), (L2, Level::L2)] {
        for flags in [RO, TABLE] {
            assert_eq!(w.update(table, 20, w.entry(table, flags)), EINVAL, "{level:?} links itself");
        }
        w.table(10, 20, w.entry(10, RO));
        assert_eq!(w.pin(10, level), EINVAL, "{level:?} links itself when it becomes a table");
        w.poke(10, 20, 0);
    }
    // The fast path at L1 keeps an eye on RW: the boot L1 maps itself read-only.
    assert_eq!(w.update(L1, L1, w.entry(L1, RO | pte::ACCESSED | pte::NX)), Ok(()));
    assert_eq!(w.update(L1, L1, w.entry(L1, RW | pte::ACCESSED)), EBUSY);
    assert_eq!(w.update(L1, L1, w.entry(L1, P | pte::RW)), EBUSY);
}

/// XSA-212: memory_exchange wrote its result to an unchecked address of the guest's choice. Here: the host never uses a
/// guest's frame number to write to memory that the guest may not write to.
#[test]
fn xsa_212_the_host_does_not_write_for_the_guest() {
    let mut w = World::new();
    let forbidden = [w.mfn(L1), w.layout.shared_info, Mfn(w.layout.m2p.start), Mfn(0), Mfn(w.layout.total)];
    for mfn in forbidden {
        assert_eq!(w.direct.get_writable(&w.memory, &mut w.log, mfn), EINVAL);
        assert_eq!(w.ext(MMUEXT_CLEAR_PAGE, mfn.0), EINVAL);
    }
    let past_the_m2p = Mfn(w.layout.total + 512).maddr().0 | MMU_MACHPHYS_UPDATE;
    assert_eq!(w.raw_update(past_the_m2p, 0), EINVAL);
}

/// XSA-213: after an IRET within a multicall, the wrong root was in use and unvalidated tables were walked.
/// What a vCPU may walk is held here, whatever the guest does to the tables in between.
#[test]
fn xsa_213_roots_stay_validated_while_they_are_roots() {
    let mut w = World::new();
    w.table(10, 0, w.entry(L3, TABLE));
    assert_eq!(w.tables.user_root(), None, "none to walk until one is given");
    assert_eq!(w.ext(MMUEXT_NEW_USER_BASEPTR, w.mfn(10).0), Ok(()));
    assert_eq!(w.unpin(10), EINVAL, "it was never pinned");
    assert_eq!(w.update(L1, 10, w.entry(10, RW)), EBUSY);
    assert_eq!(w.unpin(L4), Ok(()));
    assert_eq!(w.update(L1, L4, w.entry(L4, RW)), EBUSY, "the kernel's root is still in use");
    let take = w.mfn(10);
    assert_eq!(w.op(|d, m, p, _, _| d.take_from_guest(m, p, take)), EBUSY);
}

/// Replacing an entry takes the new reference first, and a refusal changes nothing.
#[test]
fn a_refused_replacement_changes_nothing() {
    let mut w = World::new();
    let before: Vec<_> = (0..w.layout.total).map(|m| w.direct.frame(Mfn(m))).collect();
    assert_eq!(w.update(L1, FREE, w.entry(L1, RW)), EBUSY);
    assert_eq!(w.update(L2, 0, w.entry(FREE, TABLE)), EINVAL);
    assert_eq!(w.update(L4, 0, w.entry(L1, TABLE)), EINVAL);
    let after: Vec<_> = (0..w.layout.total).map(|m| w.direct.frame(Mfn(m))).collect();
    assert_eq!(before, after);
}

/// XSA-286: a guest invalidated an upper entry, and stale paging-structure caches let it reach, as a table, a
/// frame that it could write by then.
#[test]
fn xsa_286_a_table_becomes_writable_only_after_a_flush() {
    let mut w = World::new();
    w.poke(10, 0, w.entry(FREE, RW));
    w.protect(10);
    assert_eq!(w.update(L2, 1, w.entry(10, TABLE)), Ok(()));
    assert_eq!(w.update(L2, 1, 0), Ok(()));
    let (slot, entry) = (w.at(L1, 10).0, w.entry(10, RW));
    assert_eq!(w.direct.mmu_update_one(&w.memory, &mut w.log, slot, entry), Ok(()));
    assert_eq!(w.space.pending(&w.log).flush, Flush::All, "nobody asked, and still");
    w.enter();
}

/// The same the other way round: a writable mapping that was removed without a flush.
#[test]
fn a_writable_frame_becomes_a_table_only_after_a_flush() {
    let mut w = World::new();
    w.protect(10);
    let pin = MmuextOp { cmd: MMUEXT_PIN_L1_TABLE, arg1: w.mfn(10).0, ..MmuextOp::default() };
    assert_eq!(w.direct.mmuext_one(&w.memory, &mut w.log, &mut w.space, &mut w.tables, &pin), Ok(()));
    assert_eq!(w.space.pending(&w.log).flush, Flush::All);
    w.enter();
}

/// XSA-299 and XSA-310: a validation that was interrupted left tables half done that the guest then used.
/// A table whose validation was interrupted is not a table yet: only finished ones keep their type, until
/// another operation would be refused for it.
#[test]
fn xsa_299_an_interrupted_validation_leaves_nothing_half_done() {
    let mut w = World::new();
    w.direct.work.limit = 4 * 512;
    for pfn in 12..18 {
        w.poke(11, pfn, w.entry(pfn, TABLE));
        w.protect(pfn);
    }
    w.protect(11);
    assert_eq!(w.pin(11, Level::L2), Err(Stop::Restart));
    assert_eq!(w.held(11), None);
    assert_eq!(w.held(12), Some(FrameType::Table(Level::L1)), "progress");
    assert_eq!(w.update(L1, 11, w.entry(11, RW)), Ok(()), "the frame is free to become something else");
    assert_eq!(w.update(L1, 12, w.entry(12, RW)), Ok(()), "what was done for it is given up");
    assert_eq!(w.pin(11, Level::L2), EINVAL);
}

/// References, type references, pins and parked flags, all of which a failed operation must leave unchanged.
fn accounts(w: &World) -> Vec<(u64, u64, bool, bool)> {
    let account = |f: Frame| (f.refs(), f.type_refs(), f.pinned(), f.parked());
    (0..w.layout.total).map(|m| account(w.direct.frame(Mfn(m)).unwrap())).collect()
}

/// XSA-242: an update held a type reference of its own for a while, and where that was the last one by the end, what
/// the table referred to was never let go. The like of it here: an operation that was interrupted has taken references,
/// and then it is refused, or never issued again.
#[test]
fn xsa_242_an_operation_that_fails_after_a_restart_keeps_no_reference() {
    type Attempt = fn(&mut World) -> Result<(), Stop>;
    let attempts: [Attempt; 4] = [
        |w| w.pin(4, Level::L4),
        |w| w.update(L4, 3, w.entry(5, TABLE)),
        |w| w.ext(MMUEXT_NEW_BASEPTR, w.mfn(4).0),
        |w| w.ext(MMUEXT_NEW_USER_BASEPTR, w.mfn(4).0),
    ];
    for (n, attempt) in attempts.into_iter().enumerate() {
        for issues in [1, 2, 100] {
            let mut w = super::restart::with_tree(40);
            w.direct.work.limit = 8 * 512;
            // The very last entry of the last table links a table writable.
            w.update(L1, 46, w.entry(46, RW)).unwrap();
            w.poke(46, 511, w.entry(L1, RW));
            w.protect(46);
            let before = accounts(&w);
            let outcomes: Vec<_> = (0..issues).map(|_| attempt(&mut w)).collect();
            assert_eq!(outcomes[0], Err(Stop::Restart), "{n}");
            assert!(issues < 100 || outcomes.contains(&EBUSY), "{n}: refused in the end");
            // What is left of it goes when it stands in the way of another operation.
            let next = w.mfn(7);
            let drain = |w: &mut World| {
                w.op(|d, m, p, _, _| d.get_writable(m, p, next).map(|()| d.put_writable(next)))
            };
            while drain(&mut w) == Err(Stop::Restart) {}
            assert!(accounts(&w) == before, "{n}, issued {issues} times: references were lost");
        }
    }
}

/// XSA-279: a flush of an address that is not canonical was passed on to an instruction that faults on it. No address
/// but a guest's reaches an engine.
#[test]
fn xsa_279_only_addresses_of_a_guest_are_flushed() {
    let mut w = World::new();
    for va in [
        1 << 47,
        1 << 63,
        u64::MAX >> 1,
        0xffff_7fff_ffff_f000,
        HYPERVISOR_VIRT_START,
        HYPERVISOR_VIRT_END - 1,
    ] {
        for cmd in [MMUEXT_INVLPG_LOCAL, MMUEXT_INVLPG_MULTI, MMUEXT_INVLPG_ALL] {
            let op = MmuextOp { cmd, arg1: va, ..MmuextOp::default() };
            assert_eq!(
                w.direct.mmuext_one(&w.memory, &mut w.log, &mut w.space, &mut w.tables, &op),
                Ok(()),
                "{va:#x}"
            );
            assert_eq!(w.space.pending(&w.log).flush, Flush::None, "{va:#x}");
        }
        let update = w.direct.update_va_mapping(&w.memory, &mut w.log, &mut w.space, va, 0, UVMF_INVLPG);
        assert_eq!((update, w.space.pending(&w.log).flush), (EINVAL, Flush::None), "{va:#x}");
    }
    let op = MmuextOp { cmd: MMUEXT_INVLPG_LOCAL, arg1: HYPERVISOR_VIRT_END, ..MmuextOp::default() };
    assert_eq!(w.direct.mmuext_one(&w.memory, &mut w.log, &mut w.space, &mut w.tables, &op), Ok(()));
    assert_eq!(w.space.pending(&w.log).flush, Flush::Page(HYPERVISOR_VIRT_END), "the first address that is");
}

/// XSA-273 and its like (L1TF): an entry that is not present may hold anything. It refers to nothing here: it
/// is counted as nothing and never walked; what a processor may speculate on is for the host's kernel to hide.
#[test]
fn xsa_273_entries_that_are_not_present_refer_to_nothing() {
    let mut w = World::new();
    for junk in [!P, pte::make(w.layout.engine.start, RW & !P), w.entry(L1, RW & !P)] {
        for table in [L1, L2, L3, L4] {
            assert_eq!(w.update(table, 40, junk), Ok(()));
            assert_eq!(w.load(table, 40), junk);
            assert_eq!(w.update(table, 40, 0), Ok(()));
        }
    }
}

/// XSA-402 (and 377): cache attributes that let a guest write past a frame's type. No attributes but the host's.
#[test]
fn xsa_402_no_cache_attributes() {
    let mut w = World::new();
    for flags in [pte::PWT, pte::PCD, pte::PWT | pte::PCD, pte::PAT] {
        assert_eq!(w.update(L1, FREE, w.entry(FREE, RW | flags)), EINVAL);
        assert_eq!(w.update(L2, 0, w.entry(L1, TABLE | flags)), EINVAL);
    }
}
