//! `memory_op`: frames that are returned, taken and exchanged, and queries that a guest may or may not make.

use paravane_guest::abi::Errno;
use paravane_guest::abi::addr::INVALID_M2P_ENTRY;
use paravane_guest::abi::domid::DOMID_SELF;
use paravane_guest::abi::hypercall::{MEMORY_OP, UPDATE_VA_MAPPING};
use paravane_guest::abi::memory::*;
use paravane_guest::abi::mmu::UVMF_INVLPG;
use paravane_guest::abi::pte;
use paravane_guest::hypercall::memory;
use paravane_guest::memory::{Mfn, Pfn};
use paravane_guest::paging::FrameSource;
use paravane_guest::println;

use super::Bench;
use super::calls::NOWHERE;
use super::raw::{does, nowhere, op, raw};
use crate::probe;

/// The number of pages that the checks use; a power of two.
const PAGES: usize = 4;
const WRITABLE: u64 = pte::PRESENT | pte::USER | pte::ACCESSED | pte::RW | pte::DIRTY;

fn list(numbers: &[u64], extent_order: u32) -> XenMemoryReservation {
    XenMemoryReservation {
        extent_start: numbers.as_ptr() as u64,
        nr_extents: numbers.len() as u64,
        extent_order,
        domid: DOMID_SELF,
        ..XenMemoryReservation::default()
    }
}

fn change(command: u32, r: XenMemoryReservation) -> Result<u64, Errno> {
    does(MEMORY_OP, command, r)
}

fn exchange(from: XenMemoryReservation, to: XenMemoryReservation) -> (Result<u64, Errno>, u64) {
    let (outcome, x) =
        op(MEMORY_OP, XENMEM_EXCHANGE, XenMemoryExchange { in_: from, out: to, nr_exchanged: 0 });
    (outcome, x.nr_exchanged)
}

/// Reads numbers that the hypervisor may have written to.
fn reread(numbers: &[u64; PAGES]) -> [u64; PAGES] {
    // SAFETY: the numbers are initialised.
    unsafe { (&raw const *numbers).read_volatile() }
}

/// The pages, whose frames are not mapped, and addresses that the checks use.
struct Pages {
    pfns: [u64; PAGES],
    va: [u64; PAGES],
    mfns: [u64; PAGES],
}

impl Pages {
    /// The pages are consecutive, and so are their frames on a hypervisor that gives a domain contiguous memory.
    fn take(bench: &mut Bench) -> Option<Self> {
        let all = bench.mmu.memory();
        let mut first = bench.frames.take()?;
        while !all.mfn(first)?.0.is_multiple_of(PAGES as u64) {
            first = bench.frames.take()?;
        }
        let mut pfns = [first.0; PAGES];
        for pfn in &mut pfns[1..] {
            *pfn = bench.frames.take()?.0;
        }
        let mfns = pfns.map(|pfn| all.mfn(Pfn(pfn)).map_or(0, |mfn| mfn.0));
        Some(Self { pfns, va: pfns.map(|pfn| all.va(Pfn(pfn))), mfns })
    }

    fn unmap(&self) -> usize {
        self.va.iter().filter(|va| raw(UPDATE_VA_MAPPING, [**va, 0, UVMF_INVLPG]) == Ok(0)).count()
    }

    /// Gives the pages frames again, and updates the physical-to-machine table.
    fn map(&mut self, bench: &Bench, mfns: [u64; PAGES]) -> usize {
        let table = bench.boot.start_info().mfn_list as *mut u64;
        self.mfns = mfns;
        let both = self.va.iter().zip(self.pfns).zip(mfns);
        both.filter(|((va, pfn), mfn)| {
            // SAFETY: the page belongs to this check and is within the table.
            unsafe { table.add(*pfn as usize).write_volatile(*mfn) };
            raw(UPDATE_VA_MAPPING, [**va, pte::make(*mfn, WRITABLE), UVMF_INVLPG]) == Ok(0)
        })
        .count()
    }

    /// Whether the frames are writable and belong to these pages of the guest.
    fn are_ours(&self, bench: &Bench) -> bool {
        let all = bench.mmu.memory();
        self.va.iter().zip(self.pfns).zip(self.mfns).all(|((va, pfn), mfn)| {
            // SAFETY: the page belongs to this check.
            unsafe { probe::write(*va, pfn) }.is_ok()
                && probe::read(*va) == Ok(pfn)
                && all.pfn(Mfn(mfn)) == Some(Pfn(pfn))
        })
    }
}

pub(super) fn run(bench: &mut Bench) {
    questions(bench);
    let Some(mut pages) = Pages::take(bench) else { return bench.suite.holds("set-up", false) };
    mistakes(bench, &pages);
    give_and_take(bench, &mut pages);
    exchanges(bench, &mut pages);
    crossing(bench, &mut pages);
}

/// Memory for a number that crosses a page boundary.
#[repr(align(4096))]
struct TwoPages(#[expect(dead_code, reason = "only its address is taken")] [u8; 8192]);
static mut TWO_PAGES: TwoPages = TwoPages([0; 8192]);

/// If a result would extend into a page that is not writable, nothing happens and no frame is lost.
fn crossing(bench: &mut Bench, pages: &mut Pages) {
    if !bench.paravane {
        // Xen only checks the start of the number, and gives frames whose numbers it cannot return.
        return;
    }
    let start = &raw mut TWO_PAGES as u64;
    let second = start + 4096;
    let translated = bench.mmu.kernel_space().translate(&bench.mmu, second);
    let Some((Mfn(frame), _)) = translated else { return bench.suite.holds("two-pages", false) };
    let at = second - 4;
    // SAFETY: the memory belongs to this check.
    unsafe { (at as *mut u64).write_unaligned(pages.pfns[0]) };
    let one = XenMemoryReservation { extent_start: at, nr_extents: 1, ..list(&pages.pfns, 0) };
    let suite = &mut bench.suite;
    suite.equal("unmap-for-crossing", pages.unmap(), PAGES);
    let given = change(XENMEM_DECREASE_RESERVATION, list(&pages.mfns, 0));
    suite.equal("decrease-for-crossing", given, Ok(PAGES as u64));
    let before = memory::current_reservation();
    let read_only = pte::make(frame, WRITABLE & !pte::RW);
    suite.equal("read-only", raw(UPDATE_VA_MAPPING, [second, read_only, UVMF_INVLPG]), Ok(0));
    for command in [XENMEM_INCREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP] {
        suite.equal("number-that-cannot-be-told", change(command, one), Ok(0));
        suite.equal("no-frame-is-lost", memory::current_reservation(), before);
    }
    let writable = pte::make(frame, WRITABLE);
    suite.equal("writable-again", raw(UPDATE_VA_MAPPING, [second, writable, UVMF_INVLPG]), Ok(0));
    let numbers = pages.pfns;
    let populated = change(XENMEM_POPULATE_PHYSMAP, list(&numbers, 0));
    suite.equal("populate-after-crossing", populated, Ok(PAGES as u64));
    let mapped = pages.map(bench, reread(&numbers));
    bench.suite.equal("all-frames-are-there", (mapped, pages.are_ours(bench)), (PAGES, true));
}

fn give_and_take(bench: &mut Bench, pages: &mut Pages) {
    let before = memory::current_reservation();
    let given = list(&pages.mfns, 0);
    if bench.paravane {
        // Xen frees such a frame when its last mapping goes.
        bench.suite.equal("decrease-what-is-mapped", change(XENMEM_DECREASE_RESERVATION, given), Ok(0));
    }
    bench.suite.equal("unmap", pages.unmap(), PAGES);
    bench.suite.equal("decrease", change(XENMEM_DECREASE_RESERVATION, given), Ok(PAGES as u64));
    bench.suite.equal("decrease-twice", change(XENMEM_DECREASE_RESERVATION, given), Ok(0));
    let less = before.map(|frames| frames - PAGES as u64);
    bench.suite.equal("reservation-is-less", memory::current_reservation(), less);
    let m2p = memory::machphys_mapping().map_or(0, |m| m.v_start);
    if bench.paravane {
        // On Xen another domain may own such a frame by now.
        bench.suite.equal("frame-is-no-page", probe::read(m2p + pages.mfns[0] * 8), Ok(INVALID_M2P_ENTRY));
        let map = raw(UPDATE_VA_MAPPING, [pages.va[0], pte::make(pages.mfns[0], WRITABLE), UVMF_INVLPG]);
        bench.suite.refused("frame-cannot-be-mapped", map);
    }
    let numbers = pages.pfns;
    let populated = change(XENMEM_POPULATE_PHYSMAP, list(&numbers, 0));
    bench.suite.equal("populate", populated, Ok(PAGES as u64));
    let mapped = pages.map(bench, reread(&numbers));
    bench.suite.equal("populated-frames-map", (mapped, pages.are_ours(bench)), (PAGES, true));
    bench.suite.equal("reservation-is-as-before", memory::current_reservation(), before);

    bench.suite.equal("unmap-again", pages.unmap(), PAGES);
    let given = list(&pages.mfns, 0);
    bench.suite.equal("decrease-again", change(XENMEM_DECREASE_RESERVATION, given), Ok(PAGES as u64));
    let numbers = [0; PAGES];
    let increased = change(XENMEM_INCREASE_RESERVATION, list(&numbers, 0));
    bench.suite.equal("increase", increased, Ok(PAGES as u64));
    let frames = reread(&numbers);
    bench.suite.equal("increased-frames-map", pages.map(bench, frames), PAGES);
    let tell = |(mfn, pfn): (&u64, u64)| super::tables::machphys(*mfn, pfn) == Ok(0);
    bench.suite.equal("machphys-update", frames.iter().zip(pages.pfns).filter(|p| tell(*p)).count(), PAGES);
    bench.suite.holds("increased-frames-are-ours", pages.are_ours(bench));
}

fn exchanges(bench: &mut Bench, pages: &mut Pages) {
    let count = PAGES as u64;
    let out = pages.pfns;
    let mapped = exchange(list(&pages.mfns, 0), list(&out, 0));
    bench.suite.equal("exchange-what-is-mapped", mapped, (Err(Errno::EINVAL), 0));
    bench.suite.equal("unmap-for-exchange", pages.unmap(), PAGES);
    bench.suite.equal("exchange", exchange(list(&pages.mfns, 0), list(&out, 0)), (Ok(0), count));
    let mapped = pages.map(bench, reread(&out));
    bench.suite.equal("exchanged-frames-map", (mapped, pages.are_ours(bench)), (PAGES, true));
    bench.suite.equal("unmap-for-a-run", pages.unmap(), PAGES);
    let out = [pages.pfns[0]; PAGES];
    let order = PAGES.trailing_zeros();
    let made = exchange(list(&pages.mfns, 0), list(&out[..1], order));
    bench.suite.equal("exchange-for-a-run", made, (Ok(0), count));
    let first = reread(&out)[0];
    let run = core::array::from_fn(|i| first + i as u64);
    let mapped = pages.map(bench, run);
    let aligned = first.is_multiple_of(count);
    bench.suite.equal(
        "run-is-aligned-and-maps",
        (aligned, mapped, pages.are_ours(bench)),
        (true, PAGES, true),
    );
}

fn mistakes(bench: &mut Bench, pages: &Pages) {
    let privileged = bench.privileged;
    let suite = &mut bench.suite;
    let fine = list(&pages.pfns, 0);
    for command in [XENMEM_INCREASE_RESERVATION, XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP] {
        suite.equal("reservation-nowhere", nowhere(MEMORY_OP, command), Ok(0));
        for bad in [
            XenMemoryReservation { domid: 9, ..fine },
            XenMemoryReservation { mem_flags: 12, ..fine },
            XenMemoryReservation { extent_start: NOWHERE, ..fine },
            XenMemoryReservation { nr_extents: 1 << 26, ..fine },
            XenMemoryReservation { nr_extents: 0, ..fine },
            XenMemoryReservation { extent_order: 99, ..fine },
        ] {
            // Xen reads the flags only if there are free frames.
            if bad.mem_flags == 0 || command != XENMEM_DECREASE_RESERVATION {
                suite.equal("reservation-does-nothing", change(command, bad), Ok(0));
            }
        }
    }
    let one = XenMemoryReservation { nr_extents: 1, ..fine };
    suite.equal("exchange-nowhere", nowhere(MEMORY_OP, XENMEM_EXCHANGE), Err(Errno::EFAULT));
    suite.equal("exchange-unequal", exchange(one, fine).0, Err(Errno::EINVAL));
    let huge = XenMemoryReservation { extent_order: 30, ..one };
    suite.equal("exchange-too-large", exchange(huge, huge).0, Err(Errno::EPERM));
    let other = XenMemoryReservation { domid: 9, ..fine };
    suite.equal("exchange-between-domains", exchange(fine, other).0, Err(Errno::EINVAL));
    suite.equal("exchange-of-no-domain", exchange(other, other).0, Err(Errno::ESRCH));
    let beyond = XenMemoryExchange { in_: one, out: one, nr_exchanged: 2 };
    suite.equal("exchange-beyond-its-end", does(MEMORY_OP, XENMEM_EXCHANGE, beyond), Err(Errno::EINVAL));
    if !privileged {
        let of_0 = XenMemoryReservation { domid: 0, ..fine };
        suite.equal("populate-domain-0", change(XENMEM_POPULATE_PHYSMAP, of_0), Ok(0));
        suite.equal("exchange-of-domain-0", exchange(of_0, of_0).0, Err(Errno::EPERM));
    }
}

fn questions(bench: &mut Bench) {
    let (paravane, privileged) = (bench.paravane, bench.privileged);
    let suite = &mut bench.suite;
    let own = |command| does(MEMORY_OP, command, XenMemoryDomain { domid: DOMID_SELF });
    let none = |command| does(MEMORY_OP, command, XenMemoryDomain { domid: 9 });
    suite.holds("maximum-ram-page", raw(MEMORY_OP, [XENMEM_MAXIMUM_RAM_PAGE.into(), 0]).is_ok_and(|n| n > 0));
    for command in [XENMEM_CURRENT_RESERVATION, XENMEM_MAXIMUM_RESERVATION, XENMEM_MAXIMUM_GPFN] {
        suite.holds("of-itself", own(command).is_ok());
        suite.equal("of-no-domain", none(command), Err(Errno::ESRCH));
        suite.equal("of-nowhere", nowhere(MEMORY_OP, command), Err(Errno::EFAULT));
    }
    let room = [0; PAGES];
    let list =
        XenMachphysMfnList { max_extents: 1, extent_start: room.as_ptr() as u64, ..Default::default() };
    let (outcome, answer) = op(MEMORY_OP, XENMEM_MACHPHYS_MFN_LIST, list);
    suite.equal("machphys-list", (outcome, answer.nr_extents, reread(&room)[0] != 0), (Ok(0), 1, true));
    let nothing = XenMachphysMfnList { extent_start: NOWHERE, ..list };
    suite.equal(
        "machphys-list-nowhere",
        does(MEMORY_OP, XENMEM_MACHPHYS_MFN_LIST, nothing),
        Err(Errno::EFAULT),
    );
    let numa = XenVnumaTopologyInfo { domid: DOMID_SELF, ..Default::default() };
    suite.equal("no-virtual-numa", does(MEMORY_OP, XENMEM_GET_VNUMAINFO, numa), Err(Errno::EOPNOTSUPP));
    let add = XenAddToPhysmap { domid: DOMID_SELF, ..Default::default() };
    suite.equal("add-to-physmap", does(MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, add), Err(Errno::EACCES));
    if paravane {
        let remove = XenRemoveFromPhysmap { domid: DOMID_SELF, ..Default::default() };
        let removed = does(MEMORY_OP, XENMEM_REMOVE_FROM_PHYSMAP, remove);
        suite.equal("remove-from-physmap", removed, Err(Errno::EACCES));
    }
    if privileged {
        println!("reservation: this domain is privileged; what others are refused is not asked for");
        return;
    }
    suite.equal(
        "of-domain-0",
        does(MEMORY_OP, XENMEM_MAXIMUM_GPFN, XenMemoryDomain { domid: 0 }),
        Err(Errno::EPERM),
    );
    let mut ram = E820Entry::default();
    let map =
        |nr_entries, buffer| op(MEMORY_OP, XENMEM_MEMORY_MAP, XenMemoryMap { nr_entries, _pad: 0, buffer });
    let (outcome, answer) = map(1, &raw mut ram as u64);
    suite.equal("memory-map", (outcome, answer.nr_entries), (Ok(0), 1));
    suite.equal("memory-map-without-room", map(0, NOWHERE).0, Err(Errno::EINVAL));
    suite.equal("memory-map-nowhere", map(1, NOWHERE).0, Err(Errno::EFAULT));
    for command in [
        XENMEM_MACHINE_MEMORY_MAP,
        XENMEM_SET_MEMORY_MAP,
        XENMEM_SET_POD_TARGET,
        XENMEM_GET_POD_TARGET,
        XENMEM_CLAIM_PAGES,
        XENMEM_RESERVED_DEVICE_MEMORY_MAP,
        XENMEM_ACQUIRE_RESOURCE,
    ] {
        suite.equal("for-tools", nowhere(MEMORY_OP, command), Err(Errno::EPERM));
    }
}
