//! Page tables by the SDK: correct mappings, with the number of hypercalls that it promises.

use paravane_guest::memory::Pfn;
use paravane_guest::paging::{FrameSource, PageFlags};

use super::Bench;
use crate::probe;

/// 512 pages, scattered over eight L1 tables.
const PAGES: usize = 512;
const BASE: u64 = 0x20_0000_0000;

/// The address of page `i`: 64 pages in each of eight regions of 2 MiB, not in order.
const fn address(i: usize) -> u64 {
    BASE + (i % 8) as u64 * (2 << 20) + (i as u64 * 37 % 512) * 4096
}

/// The frame of page `i`, scattered in the other direction; frames are used more than once.
fn frame(pool: &[Pfn; 64], i: usize) -> Pfn {
    pool[(i * 29) % 64]
}

pub(super) fn run(bench: &mut Bench) {
    let mut pool = [Pfn(0); 64];
    for slot in &mut pool {
        let Some(frame) = bench.frames.take() else { return bench.suite.holds("set-up", false) };
        *slot = frame;
    }
    scattered(bench, &pool);
    mistakes(bench, &pool);
    spaces(bench, &pool);
    everything(bench);
}

/// The number of hypercalls that `f` makes.
fn transitions(bench: &mut Bench, f: impl FnOnce(&mut Bench) -> bool) -> (bool, u64) {
    let before = bench.mmu.queue().stats().transitions();
    let ok = f(bench);
    (ok, bench.mmu.queue().stats().transitions() - before)
}

fn scattered(bench: &mut Bench, pool: &[Pfn; 64]) {
    let space = bench.mmu.kernel_space();
    let mapped = transitions(bench, |b| {
        let pages = (0..PAGES).map(|i| (address(i), frame(pool, i)));
        space.map_all(&mut b.mmu, &mut b.frames, pages, PageFlags::DATA).is_ok() && b.mmu.flush().is_ok()
    });
    bench.suite.equal("map-512-in-one-transition", mapped, (true, 1));
    let memory = bench.mmu.memory();
    let right = |i: &usize| {
        let value = *i as u64 | 0xabcd_0000_0000_0000;
        // SAFETY: the pages and their frames belong to this test.
        let written = unsafe { probe::write(address(*i), value) };
        written.is_ok() && probe::read(memory.va(frame(pool, *i))) == Ok(value)
    };
    bench.suite.equal("each-leads-to-its-frame", (0..PAGES).filter(right).count(), PAGES);
    let protected = transitions(bench, |b| {
        let read_only = PageFlags::NO_EXECUTE;
        (0..PAGES).all(|i| space.protect(&mut b.mmu, address(i), read_only).is_ok()) && b.mmu.flush().is_ok()
    });
    bench.suite.equal("protect-512-in-one-transition", protected, (true, 1));
    // SAFETY: as above.
    let refused = (0..PAGES).filter(|i| unsafe { probe::write(address(*i), 0) }.is_err()).count();
    bench.suite.equal("none-is-writable", refused, PAGES);
    bench.suite.equal(
        "all-are-readable",
        (0..PAGES).filter(|i| probe::read(address(*i)).is_ok()).count(),
        PAGES,
    );
    // SAFETY: the pages hold no code and are not executable, so that the call faults or returns.
    bench.suite.holds("none-is-executable", unsafe { probe::execute(address(0)) }.is_err());
    let unmapped = transitions(bench, |b| {
        (0..PAGES).all(|i| space.unmap(&mut b.mmu, address(i)).is_ok()) && b.mmu.flush().is_ok()
    });
    bench.suite.equal("unmap-512-in-one-transition", unmapped, (true, 1));
    bench.suite.equal("nothing-is-left", (0..PAGES).filter(|i| probe::read(address(*i)).is_ok()).count(), 0);
}

fn mistakes(bench: &mut Bench, pool: &[Pfn; 64]) {
    let space = bench.mmu.kernel_space();
    let place = address(3);
    let mut map = |va, pfn| space.map(&mut bench.mmu, &mut bench.frames, va, pfn, PageFlags::WRITE).is_ok();
    let outcomes = [
        map(place, pool[0]),
        map(place, pool[1]),
        map(place + 1, pool[0]),
        map(0xffff_8000_0000_0000, pool[0]),
        map(1 << 62, pool[0]),
        map(place + 4096, Pfn(u64::MAX >> 13)),
    ];
    let suite = &mut bench.suite;
    suite.equal("queued-mappings-count", outcomes, [true, false, false, false, false, false]);
    let own = bench.mmu.memory().va(pool[0]);
    bench.suite.holds("direct-map-is-closed", space.unmap(&mut bench.mmu, own).is_err());
    bench.suite.holds("unmap-what-is-queued", space.unmap(&mut bench.mmu, place).is_ok());
    bench.suite.holds("unmap-twice", space.unmap(&mut bench.mmu, place).is_err());
    bench.suite.holds("flush", bench.mmu.flush().is_ok());
    bench.suite.holds("nothing-is-there", probe::read(place).is_err());
}

fn spaces(bench: &mut Bench, pool: &[Pfn; 64]) {
    use paravane_guest::paging::AddressSpace;

    let kernel = bench.mmu.kernel_space();
    let place = 0x30_0000_0000;
    let before = bench.frames.remaining();
    let mut made = None;
    let switched = transitions(bench, |b| {
        made = AddressSpace::new(&mut b.mmu, &mut b.frames, &kernel).ok();
        made.as_ref().is_some_and(|space| {
            space.map(&mut b.mmu, &mut b.frames, place, pool[5], PageFlags::DATA).is_ok()
                && space.switch(&mut b.mmu).is_ok()
        })
    });
    bench.suite.equal("new-map-switch-in-one-transition", switched, (true, 1));
    let Some(space) = made else { return };
    // SAFETY: the page belongs to this test.
    bench.suite.equal("own-page-is-there", unsafe { probe::write(place, 9) }, Ok(()));
    let destroyed = transitions(bench, |b| kernel.switch(&mut b.mmu).is_ok());
    bench.suite.equal("switch-back-in-one-transition", destroyed, (true, 1));
    bench.suite.holds("own-page-is-gone", probe::read(place).is_err());
    let destroyed = transitions(bench, |b| space.destroy(&mut b.mmu, &mut b.frames, &kernel).is_ok());
    bench.suite.equal("destroy-in-one-transition", destroyed, (true, 1));
    let tables = before.start..bench.frames.remaining().start;
    // SAFETY: the frames were tables of this test.
    let writable =
        tables.clone().all(|pfn| unsafe { probe::write(bench.mmu.memory().va(Pfn(pfn)), 1) }.is_ok());
    bench.suite.holds("tables-are-ordinary-frames-again", writable);
}

/// The remaining memory, beyond the initial mapping.
fn everything(bench: &mut Bench) {
    let memory = bench.mmu.memory();
    let mapped = bench.mmu.direct_map_end(Pfn(bench.frames.remaining().start));
    let all = Pfn(memory.frames());
    let extended = transitions(bench, |b| b.mmu.extend_direct_map(&mut b.frames, mapped..all).is_ok());
    bench.suite.equal("direct-map-in-one-transition", extended, (true, u64::from(mapped != all)));
    bench.suite.equal("direct-map-is-complete", bench.mmu.direct_map_end(mapped), all);
    // SAFETY: the frames are free and were not mapped before.
    let touched =
        (mapped.0..all.0).filter(|p| unsafe { probe::write(memory.va(Pfn(*p)), *p) }.is_ok()).count();
    let kept = (mapped.0..all.0).filter(|p| probe::read(memory.va(Pfn(*p))) == Ok(*p)).count();
    bench.suite.equal("every-frame-is-its-own", (touched, kept), ((all.0 - mapped.0) as usize, touched));
}
