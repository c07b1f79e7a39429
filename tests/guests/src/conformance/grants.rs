//! `grant_table_op`: the domain's table, grants to itself, and refused operations.

use paravane_guest::abi::addr::table_index;
use paravane_guest::abi::domid::{DOMID_SELF, DomId};
use paravane_guest::abi::event::{EVTCHNOP_ALLOC_UNBOUND, EVTCHNOP_CLOSE, EVTCHNOP_STATUS};
use paravane_guest::abi::event::{EvtchnAllocUnbound, EvtchnClose, EvtchnStatus};
use paravane_guest::abi::grant::*;
use paravane_guest::abi::hypercall::{EVENT_CHANNEL_OP, GRANT_TABLE_OP, UPDATE_VA_MAPPING};
use paravane_guest::abi::mmu::UVMF_INVLPG;
use paravane_guest::abi::{Errno, pte};
use paravane_guest::memory::{Mfn, Pfn};
use paravane_guest::paging::{FrameSource, PageFlags};

use super::Bench;
use super::calls::NOWHERE;
use super::raw::{does, op, raw};
use crate::probe;

/// The addresses of the table, a granted page and a replacement, which share an L1 table.
const TABLE: u64 = 0x28_0000_0000;
const WINDOW: u64 = TABLE + 4096;
const SPARE: u64 = TABLE + 2 * 4096;
/// The entries that the checks use; those below are reserved.
const R: u32 = GNTTAB_NR_RESERVED_ENTRIES;

/// The memory that the checks use.
struct Pieces {
    /// This domain's number.
    dom: DomId,
    /// The frames of two pages of ordinary memory, and of the L1 table.
    page: u64,
    other: u64,
    table: u64,
    /// The addresses of the two pages in the direct map.
    page_va: u64,
    other_va: u64,
}

/// Makes an operation on one element. Returns its result, and the element afterwards.
fn grant<T: Copy>(command: u32, mut element: T) -> (Result<u64, Errno>, T) {
    let outcome = raw(GRANT_TABLE_OP, [command.into(), &raw mut element as u64, 1]);
    // SAFETY: the structure is initialised. The hypervisor may have written to it; any bits are valid.
    (outcome, unsafe { (&raw const element).read_volatile() })
}

/// This domain's number, which the status of an unbound port for DOMID_SELF shows.
fn own_number() -> DomId {
    let port = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: DOMID_SELF, port: 0 };
    let (_, port) = op(EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND, port);
    let status = EvtchnStatus { dom: DOMID_SELF, port: port.port, ..EvtchnStatus::default() };
    let (_, status) = op(EVENT_CHANNEL_OP, EVTCHNOP_STATUS, status);
    let _ = does(EVENT_CHANNEL_OP, EVTCHNOP_CLOSE, EvtchnClose { port: port.port });
    status.u0 as DomId
}

fn pieces(bench: &mut Bench) -> Option<Pieces> {
    let space = bench.mmu.kernel_space();
    let (page, other) = (bench.frames.take()?, bench.frames.take()?);
    space.map(&mut bench.mmu, &mut bench.frames, SPARE, other, PageFlags::WRITE).ok()?;
    bench.mmu.flush().ok()?;
    let memory = bench.mmu.memory();
    let mut table = space.root();
    for level in [4, 3, 2] {
        table = memory.pfn(Mfn(pte::mfn(bench.mmu.read(table, table_index(SPARE, level)))))?;
    }
    let mfn = |pfn: Pfn| memory.mfn(pfn).map(|m| m.0);
    Some(Pieces {
        dom: own_number(),
        page: mfn(page)?,
        other: mfn(other)?,
        table: mfn(table)?,
        page_va: memory.va(page),
        other_va: memory.va(other),
    })
}

pub(super) fn run(bench: &mut Bench) {
    let Some(pieces) = pieces(bench) else { return bench.suite.holds("set-up", false) };
    versions(bench);
    if !tables(bench) {
        return bench.suite.holds("table", false);
    }
    mappings(bench, &pieces);
    refused_mappings(bench, &pieces);
    halves(bench, &pieces);
    by_entry(bench, &pieces);
    replaced(bench, &pieces);
    kept(bench, &pieces);
    copies(bench, &pieces);
    swaps(bench, &pieces);
    caches(bench, &pieces);
    transfers(bench);
    arguments(bench);
    let unmapped = raw(UPDATE_VA_MAPPING, [TABLE, 0, UVMF_INVLPG]);
    bench.suite.equal("table-unmapped", unmapped, Ok(0));
}

fn versions(bench: &mut Bench) {
    let paravane = bench.paravane;
    let suite = &mut bench.suite;
    let set = |version| grant(GNTTABOP_SET_VERSION, GnttabSetVersion { version });
    suite.equal("version-1", (set(1).0, set(1).1.version), (Ok(0), 1));
    suite.equal("version-0", (set(0).0, set(0).1.version), (Err(Errno::EINVAL), 1));
    suite.equal("version-3", set(3).0, Err(Errno::EINVAL));
    let get = |dom| grant(GNTTABOP_GET_VERSION, GnttabGetVersion { dom, pad: 0, version: 9 });
    suite.equal("get-version", (get(DOMID_SELF).0, get(DOMID_SELF).1.version), (Ok(0), 1));
    suite.equal("get-version-of-no-domain", get(9999).0, Err(Errno::ESRCH));
    let frames = |dom, nr_frames| {
        let list = [0_u64; 2];
        let op = GnttabGetStatusFrames { nr_frames, dom, status: 99, frame_list: list.as_ptr() as u64 };
        let (outcome, op) = grant(GNTTABOP_GET_STATUS_FRAMES, op);
        (outcome, op.status)
    };
    suite.equal("status-frames", frames(DOMID_SELF, 1), (Ok(0), GNTST_GENERAL_ERROR));
    suite.equal("no-status-frames", frames(DOMID_SELF, 0), (Ok(0), GNTST_OKAY));
    suite.equal("status-frames-of-no-domain", frames(9999, 0), (Ok(0), GNTST_BAD_DOMAIN));
    if paravane {
        // Xen offers it by default.
        suite.equal("version-2", (set(2).0, set(2).1.version), (Err(Errno::ENOSYS), 1));
        suite.equal("get-version-of-domain-0", get(0).0, Err(Errno::EPERM));
        suite.equal("status-frames-of-domain-0", frames(0, 0), (Ok(0), GNTST_PERMISSION_DENIED));
    }
}

/// Sets the table up and maps its first frame at `TABLE`.
fn tables(bench: &mut Bench) -> bool {
    let (privileged, paravane) = (bench.privileged, bench.paravane);
    let suite = &mut bench.suite;
    let size =
        |dom| grant(GNTTABOP_QUERY_SIZE, GnttabQuerySize { dom, status: 99, ..GnttabQuerySize::default() });
    let (outcome, limits) = size(DOMID_SELF);
    suite.equal("query-size", (outcome, limits.status, limits.nr_frames >= 1), (Ok(0), GNTST_OKAY, true));
    suite.holds("sizes-fit", limits.max_nr_frames >= limits.nr_frames);
    suite.equal("query-size-of-no-domain", size(9999).1.status, GNTST_BAD_DOMAIN);
    let mut list = [0_u64; 4];
    let mut setup = |dom, nr_frames, nowhere| {
        let frame_list = if nowhere { NOWHERE } else { list.as_mut_ptr() as u64 };
        let op = GnttabSetupTable { dom, nr_frames, status: 99, frame_list, ..GnttabSetupTable::default() };
        let (outcome, op) = grant(GNTTABOP_SETUP_TABLE, op);
        (outcome, op.status)
    };
    suite.equal("setup", setup(DOMID_SELF, 2, false), (Ok(0), GNTST_OKAY));
    suite.equal("setup-again", setup(DOMID_SELF, 1, false), (Ok(0), GNTST_OKAY));
    suite.equal(
        "setup-too-large",
        setup(DOMID_SELF, limits.max_nr_frames + 1, false),
        (Ok(0), GNTST_GENERAL_ERROR),
    );
    suite.equal("setup-of-no-domain", setup(9999, 1, false), (Ok(0), GNTST_BAD_DOMAIN));
    suite.equal("setup-list-nowhere", setup(DOMID_SELF, 1, true), (Ok(0), GNTST_BAD_VIRT_ADDR));
    if paravane {
        suite.equal("setup-of-domain-0", setup(0, 1, false), (Ok(0), GNTST_PERMISSION_DENIED));
        suite.equal("size-of-domain-0", size(0).1.status, GNTST_PERMISSION_DENIED);
        suite.equal("frames-at-most", limits.max_nr_frames, 64);
    }
    suite.holds("table-has-grown", size(DOMID_SELF).1.nr_frames >= 2);
    suite.holds("frames-differ", list[0] != list[1] && list[0] != 0);
    let entry = pte::make(list[0], pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED | pte::DIRTY);
    suite.equal("map-the-table", raw(UPDATE_VA_MAPPING, [TABLE, entry, UVMF_INVLPG]), Ok(0));
    let console = probe::read(TABLE);
    if !privileged {
        // The domain builder's entry: domain 0 may use the console's page.
        suite.holds("console-is-granted", console.is_ok_and(|word| word as u16 & 3 == GTF_PERMIT_ACCESS));
    }
    console.is_ok()
}

/// The flags of entry `r`.
fn flags(r: u32) -> u16 {
    probe::read(TABLE + u64::from(r) * 8).map_or(0xffff, |word| word as u16)
}

/// Writes an entry with its flags at once: no other processor reads it meanwhile.
fn offer(r: u32, flags: u16, dom: DomId, frame: u64) {
    let word = frame << 32 | u64::from(dom) << 16 | u64::from(flags);
    // SAFETY: the table belongs to this module.
    let _ = unsafe { probe::write(TABLE + u64::from(r) * 8, word) };
}

fn map(host_addr: u64, r: u32, flags: u32, dom: DomId) -> GnttabMapGrantRef {
    let op =
        GnttabMapGrantRef { host_addr, flags, r#ref: r, dom, status: 99, ..GnttabMapGrantRef::default() };
    let (outcome, mut op) = grant(GNTTABOP_MAP_GRANT_REF, op);
    if outcome != Ok(0) {
        op.status = 98;
    }
    op
}

fn unmap(host_addr: u64, dev_bus_addr: u64, handle: GrantHandle) -> i16 {
    let op = GnttabUnmapGrantRef { host_addr, dev_bus_addr, handle, status: 99, _pad: 0 };
    let (outcome, op) = grant(GNTTABOP_UNMAP_GRANT_REF, op);
    if outcome == Ok(0) { op.status } else { 98 }
}

fn mappings(bench: &mut Bench, p: &Pieces) {
    let suite = &mut bench.suite;
    // SAFETY: the page belongs to this module.
    suite.equal("fill", unsafe { probe::write(p.page_va, 77) }, Ok(()));
    offer(R, GTF_PERMIT_ACCESS, p.dom, p.page);
    let write = map(WINDOW, R, GNTMAP_HOST_MAP, p.dom);
    suite.equal("map", (write.status, write.dev_bus_addr), (GNTST_OKAY, p.page * 4096));
    suite.equal("in-use-for-writing", flags(R), GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING);
    suite.equal("what-is-granted-is-there", probe::read(WINDOW), Ok(77));
    // SAFETY: the same page.
    suite.equal("write-through", unsafe { probe::write(WINDOW, 78) }, Ok(()));
    suite.equal("is-written", probe::read(p.page_va), Ok(78));
    let read = map(SPARE, R, GNTMAP_HOST_MAP | GNTMAP_READONLY, p.dom);
    suite.equal("map-again-read-only", read.status, GNTST_OKAY);
    suite.equal("the-old-mapping-is-gone", probe::read(SPARE), Ok(78));
    // SAFETY: the same page.
    suite.holds("read-only", unsafe { probe::write(SPARE, 79) }.is_err());
    suite.equal("unmap", unmap(WINDOW, 0, write.handle), GNTST_OKAY);
    suite.holds("nothing-is-there", probe::read(WINDOW).is_err());
    suite.equal("in-use-for-reading", flags(R), GTF_PERMIT_ACCESS | GTF_READING);
    suite.equal("unmap-read-only", unmap(SPARE, 0, read.handle), GNTST_OKAY);
    suite.equal("not-in-use", flags(R), GTF_PERMIT_ACCESS);
    suite.equal("unmap-twice", unmap(SPARE, 0, read.handle), GNTST_BAD_HANDLE);
    suite.equal("unmap-no-handle", unmap(SPARE, 0, u32::MAX), GNTST_BAD_HANDLE);
}

fn refused_mappings(bench: &mut Bench, p: &Pieces) {
    let paravane = bench.paravane;
    let suite = &mut bench.suite;
    let host = GNTMAP_HOST_MAP;
    offer(R + 1, GTF_PERMIT_ACCESS | GTF_READONLY, p.dom, p.page);
    offer(R + 2, GTF_PERMIT_ACCESS, p.dom, p.table);
    offer(R + 3, GTF_INVALID, p.dom, p.page);
    offer(R + 4, GTF_PERMIT_ACCESS, p.dom + 1, p.page);
    offer(R + 5, GTF_ACCEPT_TRANSFER, p.dom, p.page);
    offer(R + 6, GTF_PERMIT_ACCESS, p.dom, 0);
    offer(R + 7, GTF_PERMIT_ACCESS, p.dom, 0xffff_ffff);
    let mut check = |name, host_addr, r, flags, dom, status| {
        suite.equal(name, map(host_addr, r, flags, dom).status, status);
    };
    check("map-nothing", WINDOW, R, 0, p.dom, GNTST_BAD_GNTREF);
    check("map-no-entry", WINDOW, u32::MAX, host, p.dom, GNTST_BAD_GNTREF);
    check("map-of-no-domain", WINDOW, R, host, 9999, GNTST_BAD_DOMAIN);
    check("map-of-self-by-that-name", WINDOW, R, host, DOMID_SELF, GNTST_BAD_DOMAIN);
    check("map-read-only-for-writing", WINDOW, R + 1, host, p.dom, GNTST_GENERAL_ERROR);
    check("map-a-page-table-for-writing", WINDOW, R + 2, host, p.dom, GNTST_GENERAL_ERROR);
    check("map-what-is-not-granted", WINDOW, R + 3, host, p.dom, GNTST_GENERAL_ERROR);
    check("map-what-another-may", WINDOW, R + 4, host, p.dom, GNTST_GENERAL_ERROR);
    check("map-what-accepts", WINDOW, R + 5, host, p.dom, GNTST_GENERAL_ERROR);
    check("map-no-frame", WINDOW, R + 7, host, p.dom, GNTST_BAD_PAGE);
    check("map-at-no-table", NOWHERE, R, host, p.dom, GNTST_GENERAL_ERROR);
    check("map-at-the-hypervisor", 0xffff_8000_0000_0000, R, host, p.dom, GNTST_GENERAL_ERROR);
    if paravane {
        check("map-the-hypervisors-frame", WINDOW, R + 6, host, p.dom, GNTST_BAD_PAGE);
        check("map-of-domain-0", WINDOW, R, host, 0, GNTST_GENERAL_ERROR);
    }
    for r in R..R + 8 {
        suite.equal("marks-are-taken-back", flags(r) & (GTF_READING | GTF_WRITING), 0);
    }
    let read_only = map(WINDOW, R + 1, host | GNTMAP_READONLY, p.dom);
    suite.equal("map-read-only", read_only.status, GNTST_OKAY);
    suite.equal("unmap-another-address", unmap(SPARE, 0, read_only.handle), GNTST_GENERAL_ERROR);
    suite.equal("unmap-with-more-rights", unmap(p.page_va, 0, read_only.handle), GNTST_GENERAL_ERROR);
    suite.equal("unmap-it", unmap(WINDOW, 0, read_only.handle), GNTST_OKAY);
}

/// A mapping for both processors and devices is unmapped for each of them separately.
fn halves(bench: &mut Bench, p: &Pieces) {
    let suite = &mut bench.suite;
    offer(R, GTF_PERMIT_ACCESS, p.dom, p.page);
    let both = map(WINDOW, R, GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP, p.dom);
    suite.equal("map-for-both", both.status, GNTST_OKAY);
    suite.equal("unmap-neither", unmap(0, 0, both.handle), GNTST_OKAY);
    suite.equal(
        "unmap-other-device-address",
        unmap(0, both.dev_bus_addr + 8, both.handle),
        GNTST_BAD_DEV_ADDR,
    );
    suite.equal("unmap-the-processors", unmap(WINDOW, 0, both.handle), GNTST_OKAY);
    suite.equal("devices-use-it", flags(R), GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING);
    suite.equal("unmap-the-devices", unmap(0, both.dev_bus_addr, both.handle), GNTST_OKAY);
    suite.equal("nobody-uses-it", flags(R), GTF_PERMIT_ACCESS);
}

fn by_entry(bench: &mut Bench, p: &Pieces) {
    let suite = &mut bench.suite;
    let slot = p.table * 4096 + table_index(WINDOW, 1) as u64 * 8;
    let how = GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE;
    let mapped = map(slot, R, how, p.dom);
    suite.equal("map-by-entry", (mapped.status, probe::read(WINDOW)), (GNTST_OKAY, Ok(78)));
    suite.equal("map-by-entry-unaligned", map(slot + 4, R, how, p.dom).status, GNTST_GENERAL_ERROR);
    suite.equal("map-by-entry-of-no-table", map(p.page * 4096, R, how, p.dom).status, GNTST_GENERAL_ERROR);
    suite.equal("map-by-entry-of-no-frame", map(u64::MAX - 7, R, how, p.dom).status, GNTST_GENERAL_ERROR);
    suite.equal("unmap-by-entry", unmap(slot, 0, mapped.handle), GNTST_OKAY);
    suite.holds("nothing-is-there-now", probe::read(WINDOW).is_err());
}

fn replaced(bench: &mut Bench, p: &Pieces) {
    let suite = &mut bench.suite;
    let set = |va, mfn| {
        let entry = pte::make(mfn, pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED | pte::DIRTY);
        raw(UPDATE_VA_MAPPING, [va, entry, UVMF_INVLPG])
    };
    // SAFETY: the page belongs to this module.
    suite.equal("fill-the-other", unsafe { probe::write(p.other_va, 55) }, Ok(()));
    suite.equal("map-the-other", set(SPARE, p.other), Ok(0));
    let mapped = map(WINDOW, R, GNTMAP_HOST_MAP, p.dom);
    let replace = |handle| {
        let op = GnttabUnmapAndReplace { host_addr: WINDOW, new_addr: SPARE, handle, status: 99, _pad: 0 };
        let (outcome, op) = grant(GNTTABOP_UNMAP_AND_REPLACE, op);
        (outcome, op.status)
    };
    suite.equal("replace", replace(mapped.handle), (Ok(0), GNTST_OKAY));
    suite.equal("the-other-is-there", probe::read(WINDOW), Ok(55));
    suite.holds("and-not-where-it-was", probe::read(SPARE).is_err());
    suite.equal("replace-again", replace(mapped.handle), (Ok(0), GNTST_BAD_HANDLE));
    suite.equal("unmap-the-other", raw(UPDATE_VA_MAPPING, [WINDOW, 0, UVMF_INVLPG]), Ok(0));
}

/// A frame that is granted and mapped for writing cannot become anything but ordinary memory.
fn kept(bench: &mut Bench, p: &Pieces) {
    use paravane_guest::abi::hypercall::MMUEXT_OP;
    use paravane_guest::abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE, MmuextOp};

    let suite = &mut bench.suite;
    let pin = |cmd| {
        let op = MmuextOp { cmd, arg1: p.page, ..MmuextOp::default() };
        raw(MMUEXT_OP, [&raw const op as u64, 1, 0, DOMID_SELF.into()])
    };
    let own = |flags| raw(UPDATE_VA_MAPPING, [p.page_va, pte::make(p.page, flags), UVMF_INVLPG]);
    let read_only = pte::PRESENT | pte::USER | pte::ACCESSED;
    // SAFETY: the page belongs to this module.
    suite.equal("empty", unsafe { probe::write(p.page_va, 0) }, Ok(()));
    let mapped = map(WINDOW, R, GNTMAP_HOST_MAP, p.dom);
    suite.equal("protect", own(read_only), Ok(0));
    suite.equal(
        "granted-no-page-table",
        (mapped.status, pin(MMUEXT_PIN_L1_TABLE)),
        (GNTST_OKAY, Err(Errno::EINVAL)),
    );
    suite.equal("unmap-granted", unmap(WINDOW, 0, mapped.handle), GNTST_OKAY);
    suite.equal("page-table", pin(MMUEXT_PIN_L1_TABLE), Ok(0));
    suite.equal("page-table-not-granted", map(WINDOW, R, GNTMAP_HOST_MAP, p.dom).status, GNTST_GENERAL_ERROR);
    let read = map(WINDOW, R, GNTMAP_HOST_MAP | GNTMAP_READONLY, p.dom);
    suite.equal("page-table-to-read", (read.status, unmap(WINDOW, 0, read.handle)), (GNTST_OKAY, GNTST_OKAY));
    suite.equal("no-page-table", pin(MMUEXT_UNPIN_TABLE), Ok(0));
    suite.equal("unprotect", own(read_only | pte::RW | pte::DIRTY), Ok(0));
}

fn copies(bench: &mut Bench, p: &Pieces) {
    let suite = &mut bench.suite;
    offer(R, GTF_PERMIT_ACCESS, p.dom, p.page);
    offer(R + 1, GTF_PERMIT_ACCESS | GTF_READONLY, p.dom, p.other);
    // SAFETY: the page belongs to this module.
    suite.equal("fill-source", unsafe { probe::write(p.other_va, 0x1234) }, Ok(()));
    let side = |u, domid, offset| GnttabCopyPtr { u, domid, offset, _pad: 0 };
    let run = |op: GnttabCopy| {
        let (outcome, op) = grant(GNTTABOP_COPY, GnttabCopy { status: 99, ..op });
        if outcome == Ok(0) { op.status } else { 98 }
    };
    let (from, to) = (side((R + 1).into(), p.dom, 0), side(R.into(), DOMID_SELF, 8));
    let good = GnttabCopy { source: from, dest: to, len: 8, flags: 3, ..GnttabCopy::default() };
    suite.equal("copy", (run(good), probe::read(p.page_va + 8)), (GNTST_OKAY, Ok(0x1234)));
    let frames = GnttabCopy {
        source: side(p.page, DOMID_SELF, 8),
        dest: side(p.other, DOMID_SELF, 4088),
        flags: 0,
        ..good
    };
    suite.equal("copy-frames", (run(frames), probe::read(p.other_va + 4088)), (GNTST_OKAY, Ok(0x1234)));
    let cases = [
        ("copy-into-read-only", GnttabCopy { dest: from, ..good }, GNTST_GENERAL_ERROR),
        ("copy-beyond", GnttabCopy { dest: side(R.into(), p.dom, 4089), ..good }, GNTST_BAD_COPY_ARG),
        ("copy-too-much", GnttabCopy { len: 4097, ..frames }, GNTST_BAD_COPY_ARG),
        ("copy-no-entry", GnttabCopy { source: side(0xffff_ffff, p.dom, 0), ..good }, GNTST_BAD_GNTREF),
        ("copy-of-no-domain", GnttabCopy { source: side(R.into(), 9999, 0), ..good }, GNTST_BAD_DOMAIN),
        (
            "copy-frames-by-number",
            GnttabCopy { source: side(p.page, p.dom, 0), ..frames },
            GNTST_PERMISSION_DENIED,
        ),
        (
            "copy-into-a-page-table",
            GnttabCopy { dest: side(p.table, DOMID_SELF, 0), ..frames },
            GNTST_GENERAL_ERROR,
        ),
        ("copy-no-frame", GnttabCopy { source: side(1 << 40, DOMID_SELF, 0), ..frames }, GNTST_BAD_PAGE),
    ];
    for (name, op, status) in cases {
        suite.equal(name, run(op), status);
    }
    suite.equal(
        "copies-leave-no-marks",
        (flags(R), flags(R + 1)),
        (GTF_PERMIT_ACCESS, GTF_PERMIT_ACCESS | GTF_READONLY),
    );
}

fn swaps(bench: &mut Bench, p: &Pieces) {
    let suite = &mut bench.suite;
    let swap = |ref_a, ref_b| {
        let op = GnttabSwapGrantRef { ref_a, ref_b, status: 99, _pad: 0 };
        let (outcome, op) = grant(GNTTABOP_SWAP_GRANT_REF, op);
        if outcome == Ok(0) { op.status } else { 98 }
    };
    suite.equal("swap", swap(R, R + 1), GNTST_OKAY);
    suite.equal("swapped", (flags(R), flags(R + 1)), (GTF_PERMIT_ACCESS | GTF_READONLY, GTF_PERMIT_ACCESS));
    suite.equal(
        "swap-no-entry",
        (swap(R, u32::MAX), swap(u32::MAX, R)),
        (GNTST_BAD_GNTREF, GNTST_BAD_GNTREF),
    );
    let mapped = map(WINDOW, R + 1, GNTMAP_HOST_MAP, p.dom);
    suite.equal("swap-in-use", (swap(R, R + 1), swap(R + 1, R)), (GNTST_EAGAIN, GNTST_EAGAIN));
    suite.equal("swap-itself", swap(R + 1, R + 1), GNTST_OKAY);
    suite.equal("unmap-swapped", unmap(WINDOW, 0, mapped.handle), GNTST_OKAY);
}

fn caches(bench: &mut Bench, p: &Pieces) {
    let paravane = bench.paravane;
    let suite = &mut bench.suite;
    let flush =
        |a, offset, length, op| grant(GNTTABOP_CACHE_FLUSH, GnttabCacheFlush { a, offset, length, op }).0;
    let at = p.page * 4096;
    suite.equal("clean", flush(at, 0, 4096, GNTTAB_CACHE_CLEAN), Ok(0));
    suite.equal("clean-and-forget", flush(at, 8, 8, GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL), Ok(0));
    suite.equal("clean-nothing", flush(at, 0, 0, GNTTAB_CACHE_CLEAN), Ok(0));
    suite.equal("forget", flush(at, 0, 8, GNTTAB_CACHE_INVAL), Err(Errno::EOPNOTSUPP));
    suite.equal(
        "clean-a-grant",
        flush(0, 0, 8, GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_SOURCE_GREF),
        Err(Errno::EINVAL),
    );
    suite.equal("clean-beyond", flush(at, 4090, 8, GNTTAB_CACHE_CLEAN), Err(Errno::EINVAL));
    suite.equal("clean-otherwise", flush(at, 0, 8, 4), Err(Errno::EINVAL));
    suite.equal("clean-no-frame", flush(u64::MAX, 0, 8, GNTTAB_CACHE_CLEAN), Err(Errno::EINVAL));
    if paravane {
        suite.equal("clean-the-hypervisors", flush(0, 0, 8, GNTTAB_CACHE_CLEAN), Err(Errno::EPERM));
    }
}

/// A transferred frame returns by an entry that accepts it.
fn transfers(bench: &mut Bench) {
    let (dom, Some(pfn)) = (own_number(), bench.frames.take()) else { return };
    let memory = bench.mmu.memory();
    let (mfn, va) = (memory.mfn(pfn).map_or(0, |m| m.0), memory.va(pfn));
    let root = memory.mfn(bench.boot.root()).map_or(0, |m| m.0);
    let suite = &mut bench.suite;
    let transfer = |mfn, domid, r| {
        let op = GnttabTransfer { mfn, domid, r#ref: r, status: 99, ..GnttabTransfer::default() };
        let (outcome, op) = grant(GNTTABOP_TRANSFER, op);
        if outcome == Ok(0) { op.status } else { 98 }
    };
    offer(R + 5, GTF_ACCEPT_TRANSFER, dom, 0);
    suite.equal("transfer-no-frame", transfer(1 << 40, dom, R + 5), GNTST_BAD_PAGE);
    suite.equal("transfer-a-page-table", transfer(root, dom, R + 5), GNTST_BAD_PAGE);
    suite.equal("transfer-what-is-mapped", transfer(mfn, dom, R + 5), GNTST_BAD_PAGE);
    suite.equal("transfer-unmap", raw(UPDATE_VA_MAPPING, [va, 0, UVMF_INVLPG]), Ok(0));
    suite.equal("transfer", transfer(mfn, dom, R + 5), GNTST_OKAY);
    let came = GTF_ACCEPT_TRANSFER | GTF_TRANSFER_COMMITTED | GTF_TRANSFER_COMPLETED;
    let entry = probe::read(TABLE + u64::from(R + 5) * 8).map(|word| (word as u16, word >> 32));
    suite.equal("transfer-has-come", entry, Ok((came, mfn)));
    suite.equal("transfer-twice", transfer(mfn, dom, R + 5), GNTST_GENERAL_ERROR);
    let write = pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED | pte::DIRTY;
    suite.refused("what-nobody-accepted-is-gone", raw(UPDATE_VA_MAPPING, [va, pte::make(mfn, write), 0]));
}

fn arguments(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let ask = |command: u32, count: u64| raw(GRANT_TABLE_OP, [command.into(), NOWHERE, count]);
    for command in [
        GNTTABOP_MAP_GRANT_REF,
        GNTTABOP_UNMAP_GRANT_REF,
        GNTTABOP_SETUP_TABLE,
        GNTTABOP_TRANSFER,
        GNTTABOP_COPY,
        GNTTABOP_QUERY_SIZE,
        GNTTABOP_UNMAP_AND_REPLACE,
        GNTTABOP_SET_VERSION,
        GNTTABOP_GET_STATUS_FRAMES,
        GNTTABOP_GET_VERSION,
        GNTTABOP_SWAP_GRANT_REF,
        GNTTABOP_CACHE_FLUSH,
    ] {
        suite.equal("argument-nowhere", ask(command, 1), Err(Errno::EFAULT));
    }
    for command in [GNTTABOP_SETUP_TABLE, GNTTABOP_QUERY_SIZE, GNTTABOP_GET_STATUS_FRAMES] {
        suite.equal(
            "not-one-element",
            (ask(command, 0), ask(command, 2)),
            (Err(Errno::EINVAL), Err(Errno::EINVAL)),
        );
    }
    suite.equal("no-elements", ask(GNTTABOP_COPY, 0), Ok(0));
    suite.equal("too-many-elements", ask(GNTTABOP_COPY, 1 << 31), Err(Errno::EINVAL));
    suite.equal("dump-table", ask(GNTTABOP_DUMP_TABLE, 1), Err(Errno::ENOSYS));
    suite.equal("unknown-operation", ask(13, 1), Err(Errno::ENOSYS));
    static mut LONG: [GnttabSwapGrantRef; 600] =
        [GnttabSwapGrantRef { ref_a: u32::MAX, ref_b: 0, status: 99, _pad: 0 }; 600];
    let made = raw(GRANT_TABLE_OP, [GNTTABOP_SWAP_GRANT_REF.into(), (&raw mut LONG) as u64, 600]);
    // SAFETY: only the hypervisor writes to it, and any bits are valid.
    let list = unsafe { (&raw const LONG).read_volatile() };
    let answered = list.iter().filter(|op| op.status == GNTST_BAD_GNTREF).count();
    suite.equal("long-list", (made, answered), (Ok(0), 600));
}
