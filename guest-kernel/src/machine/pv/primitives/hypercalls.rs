//! The cheapest hypercall, and changes of page-table entries in a batch of one and of many.

use paravane_guest::abi::domid::DOMID_SELF;
use paravane_guest::abi::hypercall::MMU_UPDATE;
use paravane_guest::abi::mmu::{MMU_NORMAL_PT_UPDATE, MmuUpdate};
use paravane_guest::hypercall::{self, version};

use super::done;
use crate::machine::primitive::{Did, Primitive};
use crate::machine::pv::PvMmu;
use crate::memory::frames::{Frame, PAGE_SIZE};
use crate::memory::paging::{Access, ENTRIES, MapError, Mmu, Span, Stale};
use crate::memory::{Memory, SCRATCH};
use crate::single::Single;

/// The cheapest hypercall.
pub const NULL: Primitive<PvMmu> =
    Primitive::new("null", "the hypercall that does nothing: XENVER_version", ask, |_, did| {
        did.returned == did.last
    });

extern "C" fn ask(n: u64, _: u64, _: u64, _: u64) -> u64 {
    (0..n).filter(|_| version::version().is_ok_and(|(major, _)| major >= 3)).count() as u64
}

/// Changes of entries, one for each hypercall.
pub const UPDATE_1: Primitive<PvMmu> = Primitive {
    prepare,
    finish,
    ..Primitive::new(
        "update-1",
        "change a page-table entry by an mmu_update of its own",
        update_one,
        all_as_written::<1>,
    )
};

/// Changes of entries, 512 for each hypercall.
pub const UPDATE_512: Primitive<PvMmu> = Primitive {
    unit: "entry",
    repetitions: 16 * ENTRIES as u64,
    grain: ENTRIES as u64,
    prepare,
    finish,
    ..Primitive::new(
        "update-512",
        "change page-table entries, 512 by one mmu_update",
        update_many,
        all_as_written::<ENTRIES>,
    )
};

const ABSENT: MmuUpdate = MmuUpdate { ptr: 0, val: 0 };
/// Requests that map all pages of a table, and requests that unmap them.
static REQUESTS: Single<[[MmuUpdate; ENTRIES]; 2]> = Single::new([[ABSENT; ENTRIES]; 2]);

/// Pages whose entries one table has, and nothing else.
const PAGES: Span = Span::pages(SCRATCH + (1 << 30), ENTRIES as u64);

fn prepare(memory: &mut Memory<PvMmu>) -> Result<[u64; 3], MapError> {
    let Memory { mmu, frames, space, .. } = memory;
    let frame = frames.allocate().ok_or(MapError::OutOfFrames)?;
    space.reserve(mmu, frames, PAGES)?;
    mmu.flush(Stale::Nothing);
    let (table, _) = space.slot(mmu, PAGES.start).ok_or(MapError::NoTable(PAGES.start))?;
    space.map(mmu, PAGES.start, frame, Access::ReadWrite)?;
    mmu.flush(Stale::Nothing);
    let entry = mmu.read(table, 0);
    let at = mmu.entry(table, MMU_NORMAL_PT_UPDATE);
    // SAFETY: there is no other reference.
    for (requests, val) in unsafe { REQUESTS.get() }.iter_mut().zip([entry, 0]) {
        for (request, number) in requests.iter_mut().zip(0..) {
            *request = MmuUpdate { ptr: at + number * 8, val };
        }
    }
    Ok([entry, frame.0, 0])
}

fn finish(memory: &mut Memory<PvMmu>, [_, frame, _]: [u64; 3]) {
    // SAFETY: there is no other reference.
    update(unsafe { &REQUESTS.get()[1] });
    let Memory { mmu, frames, .. } = memory;
    mmu.flush(Stale::Everything);
    if let Err(error) = frames.free(Frame(frame)) {
        panic!("a nanobenchmark's frame was freed by someone else: {error:?}");
    }
}

fn update(requests: &[MmuUpdate]) {
    let arguments = [requests.as_ptr().addr() as u64, requests.len() as u64, 0, DOMID_SELF.into()];
    // SAFETY: the requests, for a table whose pages nothing uses.
    done(unsafe { hypercall::call(MMU_UPDATE, arguments) });
}

extern "C" fn update_one(n: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: there is no other reference.
    let [map, unmap] = unsafe { REQUESTS.get() };
    for _ in 0..n / 4 {
        update(&map[..1]);
        update(&unmap[..1]);
        update(&map[..1]);
        update(&unmap[..1]);
    }
    0
}

/// Maps and unmaps in turn; begins with the former.
extern "C" fn update_many(n: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: there is no other reference.
    let requests = unsafe { REQUESTS.get() };
    let calls = n / ENTRIES as u64;
    requests.iter().cycle().zip(0..calls).for_each(|(requests, _)| update(requests));
    (calls + 1) % 2
}

/// Whether the first `COUNT` entries are what the last calls made of them.
fn all_as_written<const COUNT: usize>(memory: &mut Memory<PvMmu>, did: &Did) -> bool {
    let Memory { mmu, space, .. } = memory;
    let mapped = COUNT > 1 && did.returned == 0;
    let expected = if mapped { did.arguments[0] } else { 0 };
    let va = |number: usize| PAGES.start + number as u64 * PAGE_SIZE;
    (0..COUNT).all(|number| {
        space.slot(mmu, va(number)).is_some_and(|(table, index)| mmu.read(table, index) == expected)
    })
}
