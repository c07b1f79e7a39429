//! Map scattered pages to scattered frames, write and read each page, make them read-only, unmap them.
//!
//! Each of the three changes is one batch for the machine, as when a kernel populates, write-protects (for a fork or
//! a snapshot) and tears down a mapping. The tables exist beforehand, so that each page is exactly one entry, written
//! three times.

use crate::exception::{can_read, can_write};
use crate::kernel::{Kernel, Memory};
use crate::memory::paging::{Access, Mmu, Stale};
use crate::memory::{SCRATCH, direct_map};

use super::measure::{Failure, Outcome, Workload, measure};
use super::scatter::{self, Page};

pub const SMALL: Workload = Workload {
    name: "map-512",
    what: "map, touch, protect and unmap 512 scattered pages",
    unit: "page",
    run: |kernel| run(kernel, 512),
};

pub const LARGE: Workload = Workload {
    name: "map-4096",
    what: "map, touch, protect and unmap 4096 scattered pages",
    unit: "page",
    run: |kernel| run(kernel, 4096),
};

fn run(kernel: &mut Kernel, count: u64) -> Result<Outcome, Failure> {
    let memory = &mut kernel.memory;
    let Memory { mmu, frames, space, .. } = memory;
    space.reserve(mmu, frames, scatter::window(SCRATCH, count))?;
    mmu.flush(Stale::Nothing);
    let pages = scatter::pages(frames, SCRATCH, count)?;
    let verified = rehearse(memory, &pages).and_then(|()| {
        let (done, measured) = measure(memory, |memory| exercise(memory, &pages, |_, _| true));
        done.and_then(|()| verify(&pages)).map(|()| Outcome::new(count, measured))
    });
    scatter::release(&mut memory.frames, &pages);
    verified
}

/// The measured body. `check` is called for every page after protection.
fn exercise(
    memory: &mut Memory,
    pages: &[Page],
    mut check: impl FnMut(&Memory, &Page) -> bool,
) -> Result<(), Failure> {
    let Memory { mmu, space, .. } = memory;
    for page in pages {
        space.map(mmu, page.va, page.frame, Access::ReadWrite)?;
    }
    mmu.flush(Stale::Nothing);
    for page in pages {
        // SAFETY: the page was just mapped to a frame of this workload.
        unsafe { (page.va as *mut u64).write_volatile(page.pattern) };
    }
    let protected = pages.iter().filter(|page| space.protect(mmu, page.va, Access::ReadOnly)).count();
    mmu.flush(Stale::Everything);
    // SAFETY: still mapped, and not written meanwhile.
    let kept = pages.iter().all(|page| unsafe { (page.va as *const u64).read_volatile() } == page.pattern);
    let checked = pages.iter().all(|page| check(memory, page));
    let Memory { mmu, space, .. } = memory;
    let unmapped = pages.iter().filter(|page| space.unmap(mmu, page.va) == Some(page.frame)).count();
    mmu.flush(Stale::Everything);
    Failure::unless(kept, "data-lost")?;
    Failure::unless(checked, "not-protected")?;
    Failure::unless(protected == pages.len() && unmapped == pages.len(), "entry-lost")
}

/// Two unmeasured runs that verify protection, which would disturb the measured one: the first looks at every entry;
/// the second writes to some of the pages, because an entry is not yet a translation.
fn rehearse(memory: &mut Memory, pages: &[Page]) -> Result<(), Failure> {
    exercise(memory, pages, |memory, page| {
        memory.space.translate(&memory.mmu, page.va) == Some((page.frame, Access::ReadOnly))
    })?;
    let mut turn = 0;
    exercise(memory, pages, |_, page| {
        turn += 1;
        // SAFETY: if the page is writable, its frame is this workload's.
        turn % sampling(pages) != 0 || !unsafe { can_write(page.va, 0) }
    })
}

/// Verifies after the run that the data is in the right frames, seen through the direct map, and that the pages are
/// unmapped.
fn verify(pages: &[Page]) -> Result<(), Failure> {
    // SAFETY: the direct map maps all memory, and the frames are this workload's.
    let at = |page: &Page| unsafe { (direct_map(page.frame) as *const u64).read_volatile() };
    Failure::unless(pages.iter().all(|page| at(page) == page.pattern), "wrong-frame")?;
    let gone = pages.iter().step_by(sampling(pages)).all(|page| !can_read(page.va));
    Failure::unless(gone, "still-mapped")
}

/// One page in so many is tested by a fault: 64 in all.
const fn sampling(pages: &[Page]) -> usize {
    pages.len() / 64
}
