//! Grants without an engine: statuses and counts.

use paravane_abi::domid::DOMID_SELF;
use paravane_abi::hypercall as nr;
use paravane_abi::pte;

use super::*;
use crate::machine::memory::{Maddr, Mfn};
use crate::testing::pv::{CONSOLE, FRAMES, FREE, L1, L2, NOWHERE, RO, RW, SCRATCH, TestDomain, va};

mod properties;
mod several;
mod xsa;

/// PFN of what is granted, PFN whose address is mapped over, PFN whose mapping replaces.
const PAGE: u64 = 20;
const WINDOW: u64 = 21;
const OTHER: u64 = 22;
/// The entry that most tests use.
const REF: u32 = 8;
const HOST: u32 = GNTMAP_HOST_MAP;
const HOST_RO: u32 = GNTMAP_HOST_MAP | GNTMAP_READONLY;

impl TestDomain {
    fn grant<T: IntoBytes + FromBytes + Immutable>(&mut self, op: u32, element: T) -> Result<T, Errno> {
        self.write_at(va(SCRATCH), &element).unwrap();
        self.call(nr::GRANT_TABLE_OP, [op.into(), va(SCRATCH), 1])?;
        self.read_at(va(SCRATCH))
    }
    fn grow_table(&mut self) {
        self.grant(GNTTABOP_SET_VERSION, GnttabSetVersion { version: 1 }).unwrap();
    }
    fn entry_maddr(&self, r: u32) -> Maddr {
        Maddr(Mfn(self.facts.grants.start).maddr().0 + u64::from(r) * 8)
    }
    fn flags(&self, r: u32) -> u16 {
        self.memory.read_obj(self.entry_maddr(r)).unwrap()
    }
    /// The guest writes an entry that grants a page to itself.
    fn offer(&mut self, r: u32, pfn: u64, flags: u16) {
        let frame = self.mfn(pfn) as u32;
        let entry = GrantEntryV1 { flags: GTF_PERMIT_ACCESS | flags, domid: DOMID, frame };
        self.memory.write_obj(self.entry_maddr(r), &entry).unwrap();
    }
    fn map_at(&mut self, host_addr: u64, r: u32, flags: u32) -> GnttabMapGrantRef {
        let op = GnttabMapGrantRef { host_addr, flags, r#ref: r, dom: DOMID, ..Default::default() };
        self.grant(GNTTABOP_MAP_GRANT_REF, op).unwrap()
    }
    /// Maps at the window; the handle.
    fn mapped(&mut self, flags: u32) -> GrantHandle {
        let op = self.map_at(va(WINDOW), REF, flags);
        assert_eq!(op.status, GNTST_OKAY);
        op.handle
    }
    fn unmap_from(&mut self, host_addr: u64, handle: GrantHandle) -> i16 {
        let op = GnttabUnmapGrantRef { host_addr, handle, ..Default::default() };
        self.grant(GNTTABOP_UNMAP_GRANT_REF, op).unwrap().status
    }
    fn counts(&self) -> Vec<(u64, u64)> {
        let count = |pfn| self.mmu.frame(Mfn(self.mfn(pfn))).map(|f| (f.refs(), f.type_refs())).unwrap();
        (0..FRAMES).map(count).collect()
    }
    fn leaf(&self, pfn: u64) -> u64 {
        self.peek(L1, pfn)
    }
}

#[test]
fn a_table_is_sized_and_set_up() {
    let mut t = TestDomain::new();
    let frames = Mfn(t.facts.grants.start)..Mfn(t.facts.grants.end);
    assert_eq!(t.memory.existing_frames(frames.clone()), Some(0), "none is touched before the first call");
    let size =
        t.grant(GNTTABOP_QUERY_SIZE, GnttabQuerySize { dom: DOMID_SELF, ..Default::default() }).unwrap();
    assert_eq!((size.status, size.nr_frames, size.max_nr_frames), (GNTST_OKAY, 1, 64));
    let console: GrantEntryV1 = t.memory.read_obj(t.entry_maddr(GNTTAB_RESERVED_CONSOLE)).unwrap();
    assert_eq!(console, GrantEntryV1 { flags: 1, domid: 0, frame: t.mfn(CONSOLE) as u32 });
    assert_eq!(t.memory.existing_frames(frames), Some(1));
    let setup =
        |dom, nr_frames, frame_list| GnttabSetupTable { dom, nr_frames, frame_list, ..Default::default() };
    let status =
        |t: &mut TestDomain, op: GnttabSetupTable| t.grant(GNTTABOP_SETUP_TABLE, op).map(|op| op.status);
    assert_eq!(status(&mut t, setup(DOMID, 3, va(FREE))), Ok(GNTST_OKAY));
    let first = t.facts.grants.start;
    assert_eq!([0, 1, 2, 3].map(|n| t.peek(FREE, n)), [first, first + 1, first + 2, 0]);
    assert_eq!(status(&mut t, setup(DOMID, 65, va(FREE))), Ok(GNTST_GENERAL_ERROR));
    assert_eq!(status(&mut t, setup(DOMID, 1, NOWHERE)), Ok(GNTST_BAD_VIRT_ADDR));
    assert_eq!(status(&mut t, setup(DOMID, 1, addr::HYPERVISOR_VIRT_START)), Err(Errno::EFAULT));
    assert_eq!(status(&mut t, setup(DOMID, 1, u64::MAX - 6)), Err(Errno::EFAULT));
    assert_eq!(status(&mut t, setup(0, 1, va(FREE))), Ok(GNTST_PERMISSION_DENIED));
    assert_eq!(status(&mut t, setup(9, 1, va(FREE))), Ok(GNTST_BAD_DOMAIN));
    for pages in [0, 2] {
        assert_eq!(t.call(nr::GRANT_TABLE_OP, [2, va(SCRATCH), pages]), Err(Errno::EINVAL));
    }
    let entry = |n| pte::make(first + n, RW);
    assert_eq!(t.map(WINDOW, entry(2)), Ok(0), "shared, for reading and writing");
    assert_eq!(t.map(WINDOW, entry(3)), Err(Errno::EBUSY), "the table has no such frame");
}

#[test]
fn version_1_alone_is_offered() {
    let mut t = TestDomain::new();
    let set = |t: &mut TestDomain, version| {
        let outcome = t.grant(GNTTABOP_SET_VERSION, GnttabSetVersion { version }).map(|op| op.version);
        (outcome, t.read_at::<u32>(va(SCRATCH)).unwrap())
    };
    assert_eq!(set(&mut t, 1), (Ok(1), 1));
    assert_eq!(set(&mut t, 2), (Err(Errno::ENOSYS), 1));
    assert_eq!(set(&mut t, 0), (Err(Errno::EINVAL), 1));
    let get = |t: &mut TestDomain, dom| {
        t.grant(GNTTABOP_GET_VERSION, GnttabGetVersion { dom, ..Default::default() }).map(|op| op.version)
    };
    assert_eq!(
        [DOMID_SELF, DOMID, 0, 9].map(|dom| get(&mut t, dom)),
        [Ok(1), Ok(1), Err(Errno::EPERM), Err(Errno::ESRCH)]
    );
    let frames = |nr_frames| GnttabGetStatusFrames {
        nr_frames,
        dom: DOMID_SELF,
        frame_list: va(FREE),
        ..Default::default()
    };
    for (nr_frames, status) in [(0, GNTST_OKAY), (1, GNTST_GENERAL_ERROR)] {
        assert_eq!(t.grant(GNTTABOP_GET_STATUS_FRAMES, frames(nr_frames)).unwrap().status, status);
    }
    for op in [GNTTABOP_DUMP_TABLE.into(), 13, 1 << 12] {
        assert_eq!(t.call(nr::GRANT_TABLE_OP, [op, va(SCRATCH), 1]), Err(Errno::ENOSYS));
    }
    for op in [GNTTABOP_SET_VERSION, GNTTABOP_GET_VERSION, GNTTABOP_MAP_GRANT_REF, GNTTABOP_COPY] {
        assert_eq!(t.call(nr::GRANT_TABLE_OP, [op.into(), NOWHERE, 1]), Err(Errno::EFAULT));
    }
    assert_eq!(t.call(nr::GRANT_TABLE_OP, [0, va(SCRATCH), 1 << 31]), Err(Errno::EINVAL));
    assert_eq!(t.call(nr::GRANT_TABLE_OP, [0, NOWHERE, 0]), Ok(0));
}

#[test]
fn a_grant_is_mapped_and_unmapped() {
    let mut t = TestDomain::new();
    t.unmap(WINDOW);
    let before = t.counts();
    t.mapped_cycle(HOST, GTF_READING | GTF_WRITING, RW);
    t.mapped_cycle(HOST_RO, GTF_READING, RW & !pte::RW);
    assert_eq!(t.counts(), before);
}

impl TestDomain {
    fn mapped_cycle(&mut self, flags: u32, marks: u16, rights: u64) {
        self.offer(REF, PAGE, 0);
        self.poke(PAGE, 0, 77);
        let op = self.map_at(va(WINDOW), REF, flags | GNTMAP_APPLICATION_MAP);
        assert_eq!((op.status, op.dev_bus_addr), (GNTST_OKAY, Mfn(self.mfn(PAGE)).maddr().0));
        assert_eq!(self.leaf(WINDOW), self.entry(PAGE, rights));
        assert_eq!(self.flags(REF), GTF_PERMIT_ACCESS | marks);
        assert_eq!(self.read_at::<u64>(va(WINDOW)), Ok(77));
        assert_eq!(self.write_at(va(WINDOW), &78u64).is_ok(), flags == HOST);
        assert_eq!(self.unmap_from(va(WINDOW), op.handle), GNTST_OKAY);
        assert_eq!((self.leaf(WINDOW), self.flags(REF)), (0, GTF_PERMIT_ACCESS));
        assert_eq!(self.unmap_from(va(WINDOW), op.handle), GNTST_BAD_HANDLE);
    }
}

#[test]
fn what_cannot_be_mapped_says_why_and_changes_nothing() {
    let mut t = TestDomain::new();
    t.offer(REF, PAGE, 0);
    t.offer(REF + 1, PAGE, GTF_READONLY);
    t.offer(REF + 2, L1, 0);
    t.offer(REF + 3, PAGE, GTF_SUB_PAGE);
    t.mapped(HOST_RO);
    let (before, marks) = (t.counts(), t.flags(REF));
    let window = va(WINDOW + 8);
    let l1 = Mfn(t.mfn(L1)).maddr().0;
    let refused = [
        (window, REF, 0, GNTST_BAD_GNTREF),
        (window, 512, HOST, GNTST_BAD_GNTREF),
        (window, u32::MAX, HOST, GNTST_BAD_GNTREF),
        (window, GNTTAB_RESERVED_CONSOLE, HOST_RO, GNTST_GENERAL_ERROR),
        (window, REF + 1, HOST, GNTST_GENERAL_ERROR),
        (window, REF + 2, HOST, GNTST_GENERAL_ERROR),
        (window, REF + 3, HOST_RO, GNTST_GENERAL_ERROR),
        (window, REF + 4, HOST_RO, GNTST_GENERAL_ERROR),
        (NOWHERE, REF, HOST, GNTST_GENERAL_ERROR),
        (1 << 62, REF, HOST, GNTST_GENERAL_ERROR),
        (addr::HYPERVISOR_VIRT_START, REF, HOST, GNTST_GENERAL_ERROR),
        (l1 + 8 * 30 + 4, REF, HOST | GNTMAP_CONTAINS_PTE, GNTST_GENERAL_ERROR),
        (Mfn(t.mfn(L2)).maddr().0, REF, HOST | GNTMAP_CONTAINS_PTE, GNTST_GENERAL_ERROR),
        (Mfn(t.mfn(PAGE)).maddr().0, REF, HOST | GNTMAP_CONTAINS_PTE, GNTST_GENERAL_ERROR),
        (u64::MAX - 7, REF, HOST | GNTMAP_CONTAINS_PTE, GNTST_GENERAL_ERROR),
    ];
    for (at, r, flags, status) in refused {
        assert_eq!(t.map_at(at, r, flags).status, status, "{at:#x} {r} {flags:#x}");
        assert_eq!(t.counts(), before, "{at:#x} {r} {flags:#x}");
        assert_eq!(t.flags(REF), marks);
    }
    for (frame, status) in [(0, GNTST_BAD_PAGE), (u32::MAX, GNTST_BAD_PAGE)] {
        let entry = GrantEntryV1 { flags: GTF_PERMIT_ACCESS, domid: DOMID, frame };
        t.memory.write_obj(t.entry_maddr(REF + 5), &entry).unwrap();
        assert_eq!(t.map_at(window, REF + 5, HOST).status, status);
        assert_eq!(t.flags(REF + 5), GTF_PERMIT_ACCESS);
    }
    let foreign =
        |dom| GnttabMapGrantRef { host_addr: window, flags: HOST, r#ref: REF, dom, ..Default::default() };
    for (dom, status) in [(0, GNTST_GENERAL_ERROR), (9, GNTST_BAD_DOMAIN), (DOMID_SELF, GNTST_BAD_DOMAIN)] {
        assert_eq!(t.grant(GNTTABOP_MAP_GRANT_REF, foreign(dom)).unwrap().status, status);
    }
}

#[test]
fn by_the_machine_address_of_an_entry() {
    let mut t = TestDomain::new();
    t.offer(REF, PAGE, 0);
    let before = t.counts();
    let slot = Mfn(t.mfn(L1)).maddr().0 + 100 * 8;
    let flags = HOST | GNTMAP_CONTAINS_PTE | 0b101 << 16;
    let op = t.map_at(slot, REF, flags);
    assert_eq!(op.status, GNTST_OKAY);
    let kernel = t.entry(PAGE, RW | pte::AVAIL0 | pte::AVAIL2 | crate::mmu::direct::GUEST_KERNEL);
    assert_eq!(t.peek(L1, 100), kernel);
    let replace = GnttabUnmapAndReplace {
        host_addr: slot,
        new_addr: va(OTHER),
        handle: op.handle,
        ..Default::default()
    };
    let replaced = t.grant(GNTTABOP_UNMAP_AND_REPLACE, replace).unwrap();
    assert_eq!(replaced.status, GNTST_GENERAL_ERROR, "only for linear addresses");
    assert_eq!(t.unmap_from(slot, op.handle), GNTST_OKAY);
    assert_eq!(t.counts(), before);
}

#[test]
fn a_mapping_is_replaced_by_another() {
    let mut t = TestDomain::new();
    t.unmap(WINDOW);
    let before = t.counts();
    t.offer(REF, PAGE, 0);
    let handle = t.mapped(HOST);
    let replace =
        |new_addr| GnttabUnmapAndReplace { host_addr: va(WINDOW), new_addr, handle, ..Default::default() };
    for new_addr in [va(WINDOW), NOWHERE, 1 << 62] {
        let refused = t.grant(GNTTABOP_UNMAP_AND_REPLACE, replace(new_addr)).unwrap();
        assert_eq!(refused.status, GNTST_GENERAL_ERROR, "{new_addr:#x}");
    }
    let moved = t.leaf(OTHER);
    assert_eq!(t.grant(GNTTABOP_UNMAP_AND_REPLACE, replace(va(OTHER))).unwrap().status, GNTST_OKAY);
    assert_eq!((t.leaf(WINDOW), t.leaf(OTHER), t.flags(REF)), (moved, 0, GTF_PERMIT_ACCESS));
    assert_eq!(t.counts(), before);
}

#[test]
fn unmapping_flushes_what_a_processor_may_have_cached() {
    let mut t = TestDomain::new();
    t.offer(REF, PAGE, 0);
    let handle = t.mapped(HOST);
    t.vcpu.space.caught_up(&t.domain.log);
    assert_eq!(t.unmap_from(va(WINDOW), handle), GNTST_OKAY);
    assert_eq!(t.vcpu.space.pending(&t.log).flush, crate::mmu::space::Flush::All);
}

#[test]
fn a_frame_with_a_writable_mapping_stays_what_it_is() {
    let mut t = TestDomain::new();
    t.unmap(PAGE + 10);
    t.offer(REF, PAGE + 10, 0);
    let handle = t.mapped(HOST);
    let pin = paravane_abi::mmu::MmuextOp { arg1: t.mfn(PAGE + 10), ..Default::default() };
    let pinned = |t: &mut TestDomain| {
        t.write_at(va(SCRATCH), &pin).unwrap();
        t.call(nr::MMUEXT_OP, [va(SCRATCH), 1, 0, DOMID_SELF.into()])
    };
    assert_eq!(pinned(&mut t), Err(Errno::EINVAL), "no page table");
    let give = Mfn(t.mfn(PAGE + 10));
    let taken = |t: &mut TestDomain| {
        let domain = &mut t.domain;
        domain.mmu.take_from_guest(&domain.memory, &mut domain.log, give)
    };
    assert_eq!(taken(&mut t), Err(Stop::Refused(Errno::EBUSY)), "nor given back");
    assert_eq!(t.unmap_from(va(WINDOW), handle), GNTST_OKAY);
    assert_eq!(pinned(&mut t), Ok(0));
    t.offer(REF, PAGE + 10, 0);
    assert_eq!(t.map_at(va(WINDOW), REF, HOST).status, GNTST_GENERAL_ERROR, "a table is not written to");
    assert_eq!(t.map_at(va(WINDOW), REF, HOST_RO).status, GNTST_OKAY);
}

#[test]
fn grants_are_copied() {
    let mut t = TestDomain::new();
    t.offer(REF, PAGE, 0);
    t.offer(REF + 1, OTHER, GTF_READONLY);
    t.poke(OTHER, 1, 0x1122_3344_5566_7788);
    let before = t.counts();
    let side = |u, offset| GnttabCopyPtr { u, domid: DOMID_SELF, offset, _pad: 0 };
    let (page, other) = (t.mfn(PAGE), t.mfn(OTHER));
    let by_ref = GnttabCopy { source: side(9, 8), dest: side(8, 16), len: 8, flags: 3, ..Default::default() };
    let run = |t: &mut TestDomain, op: GnttabCopy| t.grant(GNTTABOP_COPY, op).unwrap().status;
    assert_eq!(run(&mut t, by_ref), GNTST_OKAY);
    assert_eq!(t.peek(PAGE, 2), 0x1122_3344_5566_7788);
    let by_frame =
        GnttabCopy { source: side(page, 16), dest: side(other, 4088), len: 8, ..Default::default() };
    assert_eq!(run(&mut t, by_frame), GNTST_OKAY);
    assert_eq!(t.peek(OTHER, 511), 0x1122_3344_5566_7788);
    let named = |domid| GnttabCopyPtr { domid, ..side(page, 0) };
    let refused = [
        (GnttabCopy { dest: side(other, 4089), ..by_frame }, GNTST_BAD_COPY_ARG),
        (GnttabCopy { source: side(page, u16::MAX), ..by_frame }, GNTST_BAD_COPY_ARG),
        (
            GnttabCopy { len: u16::MAX, source: side(page, 0), dest: side(other, 0), ..by_frame },
            GNTST_BAD_COPY_ARG,
        ),
        (GnttabCopy { source: named(DOMID), ..by_frame }, GNTST_PERMISSION_DENIED),
        (GnttabCopy { source: named(9), ..by_frame }, GNTST_PERMISSION_DENIED),
        (GnttabCopy { source: GnttabCopyPtr { domid: 9, ..side(9, 8) }, ..by_ref }, GNTST_BAD_DOMAIN),
        (GnttabCopy { source: GnttabCopyPtr { domid: 0, ..side(9, 8) }, ..by_ref }, GNTST_GENERAL_ERROR),
        (GnttabCopy { dest: side(t.mfn(L1), 0), ..by_frame }, GNTST_GENERAL_ERROR),
        (GnttabCopy { dest: side(0, 0), ..by_frame }, GNTST_BAD_PAGE),
        (GnttabCopy { source: side(t.facts.m2p.start, 0), ..by_frame }, GNTST_BAD_PAGE),
        (GnttabCopy { source: side(u64::MAX, 0), ..by_frame }, GNTST_BAD_PAGE),
        (GnttabCopy { dest: side(9, 0), ..by_ref }, GNTST_GENERAL_ERROR),
        (GnttabCopy { source: side(600, 0), ..by_ref }, GNTST_BAD_GNTREF),
    ];
    for (op, status) in refused {
        assert_eq!(run(&mut t, op), status, "{op:?}");
    }
    assert_eq!(t.counts(), before);
    assert_eq!((t.flags(REF), t.flags(REF + 1)), (GTF_PERMIT_ACCESS, GTF_PERMIT_ACCESS | GTF_READONLY));
}

#[test]
fn entries_are_exchanged_while_nobody_uses_them() {
    let mut t = TestDomain::new();
    t.offer(REF, PAGE, 0);
    t.offer(REF + 1, OTHER, GTF_READONLY);
    let swap = |t: &mut TestDomain, ref_a, ref_b| {
        t.grant(GNTTABOP_SWAP_GRANT_REF, GnttabSwapGrantRef { ref_a, ref_b, ..Default::default() })
            .unwrap()
            .status
    };
    assert_eq!(swap(&mut t, REF, REF + 1), GNTST_OKAY);
    assert_eq!((t.flags(REF), t.flags(REF + 1)), (GTF_PERMIT_ACCESS | GTF_READONLY, GTF_PERMIT_ACCESS));
    t.mapped(HOST_RO);
    assert_eq!(swap(&mut t, REF, REF + 1), GNTST_EAGAIN);
    assert_eq!(swap(&mut t, REF + 1, REF), GNTST_EAGAIN);
    assert_eq!(swap(&mut t, REF, REF), GNTST_OKAY, "nothing to do");
}

#[test]
fn caches_are_always_clean() {
    let mut t = TestDomain::new();
    let a = Mfn(t.mfn(PAGE)).maddr().0;
    let op = |a, offset, length, op| GnttabCacheFlush { a, offset, length, op };
    let (clean, forget) = (GNTTAB_CACHE_CLEAN, GNTTAB_CACHE_INVAL);
    let cases = [
        (op(a, 0, 4096, clean), Ok(())),
        (op(a, 8, 8, clean | forget), Ok(())),
        (op(0, 0, 0, clean), Ok(())),
        (op(0, 0, 9, 0), Ok(())),
        (op(a, 0, 8, forget), Err(Errno::EOPNOTSUPP)),
        (op(8, 0, 8, clean | GNTTAB_CACHE_SOURCE_GREF), Err(Errno::EINVAL)),
        (op(a, 4096, 0, clean), Err(Errno::EINVAL)),
        (op(a, 4000, 97, clean), Err(Errno::EINVAL)),
        (op(a, 0, 8, 4), Err(Errno::EINVAL)),
        (op(u64::MAX, 0, 8, clean), Err(Errno::EINVAL)),
        (op(0, 0, 8, clean), Err(Errno::EPERM)),
    ];
    for (op, outcome) in cases {
        assert_eq!(t.grant(GNTTABOP_CACHE_FLUSH, op).map(|_| ()), outcome, "{op:?}");
    }
}

#[test]
fn a_frame_is_transferred_to_an_entry_that_accepts_it() {
    let mut t = TestDomain::new();
    let accept = GrantEntryV1 { flags: GTF_ACCEPT_TRANSFER, domid: DOMID, frame: 0 };
    t.memory.write_obj(t.entry_maddr(REF), &accept).unwrap();
    t.unmap(PAGE);
    let transfer = |mfn, domid, r| GnttabTransfer { mfn, domid, r#ref: r, ..Default::default() };
    let mfn = t.mfn(PAGE);
    assert_eq!(t.grant(GNTTABOP_TRANSFER, transfer(mfn, DOMID, REF)).unwrap().status, GNTST_OKAY);
    let entry: GrantEntryV1 = t.memory.read_obj(t.entry_maddr(REF)).unwrap();
    let flags = GTF_ACCEPT_TRANSFER | GTF_TRANSFER_COMMITTED | GTF_TRANSFER_COMPLETED;
    assert_eq!(entry, GrantEntryV1 { flags, domid: DOMID, frame: mfn as u32 });
    assert_eq!(t.m2p(mfn), addr::INVALID_M2P_ENTRY, "it is no page yet");
    // Xen frees what nobody accepts.
    for (free, (domid, status)) in
        [(DOMID, GNTST_GENERAL_ERROR), (0, GNTST_GENERAL_ERROR), (9, GNTST_BAD_DOMAIN)]
            .into_iter()
            .enumerate()
    {
        t.unmap(PAGE + 1 + free as u64);
        let mfn = t.mfn(PAGE + 1 + free as u64);
        assert_eq!(t.grant(GNTTABOP_TRANSFER, transfer(mfn, domid, REF)).unwrap().status, status);
        assert_eq!(t.free_frames.len(), free as u64 + 1);
    }
    for mfn in [t.mfn(OTHER + 10), t.mfn(L1), t.facts.grants.start, 0, 1 << 40, u64::MAX] {
        assert_eq!(t.grant(GNTTABOP_TRANSFER, transfer(mfn, DOMID, REF)).unwrap().status, GNTST_BAD_PAGE);
    }
}

/// A use too many is refused.
#[test]
fn counts_of_uses_do_not_wrap() {
    let mut t = TestDomain::new();
    t.offer(REF, PAGE, 0);
    let handles: Vec<_> = (0..128).map(|_| t.map_at(va(WINDOW), REF, GNTMAP_DEVICE_MAP)).collect();
    assert!(handles.iter().all(|op| op.status == GNTST_OKAY));
    assert_eq!(t.map_at(va(WINDOW), REF, GNTMAP_DEVICE_MAP).status, GNTST_GENERAL_ERROR);
    assert_eq!(t.map_at(va(WINDOW), REF, HOST_RO).status, GNTST_OKAY, "another kind of use");
}

/// A mapping that the guest overwrites is gone for it, and the frame is free; the grant stays in use.
#[test]
fn a_mapping_that_was_overwritten_cannot_be_unmapped() {
    let mut t = TestDomain::new();
    t.offer(REF, PAGE, 0);
    let handle = t.mapped(HOST);
    t.unmap(WINDOW);
    assert_eq!(t.unmap_from(va(WINDOW), handle), GNTST_GENERAL_ERROR);
    assert_eq!(t.flags(REF), GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING);
    let entry = t.entry(PAGE, RW);
    t.map(WINDOW, entry).unwrap();
    assert_eq!(t.unmap_from(va(WINDOW), handle), GNTST_OKAY);
}

/// The guest changes an entry while it is looked at: what is used was granted at one moment, as a whole.
#[test]
fn an_entry_that_never_holds_still_is_taken_whole_or_not_at_all() {
    const TRIES: u32 = 20_000;
    let mut t = TestDomain::new();
    t.grow_table();
    let (granted, other) = (t.mfn(PAGE), t.mfn(OTHER));
    let word = |flags: u16, frame: u64| frame << 32 | u64::from(DOMID) << 16 | u64::from(flags);
    let at = t.entry_maddr(REF);
    t.memory.store_u64(at, word(GTF_PERMIT_ACCESS, granted)).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let domain = &mut t.domain;
    let (memory, mmu, grants) = (&domain.memory, &domain.mmu, &mut domain.grants);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                memory.store_u64(at, word(GTF_INVALID, other)).unwrap();
                memory.store_u64(at, word(GTF_PERMIT_ACCESS, granted)).unwrap();
            }
        });
        let how = crate::pv::grants::Use { host: true, ..Default::default() };
        for _ in 0..TRIES {
            match grants.acquire(memory, mmu, REF, how, true) {
                Ok(frame) => {
                    assert_eq!(frame, Mfn(granted));
                    grants.release(memory, REF, how).unwrap();
                }
                Err(unusable) => assert_eq!(unusable, Unusable(GNTST_GENERAL_ERROR)),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(t.grants.used_frame(REF), None);
}
