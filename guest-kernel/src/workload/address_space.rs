//! Make an address space, map pages in it, switch to it, touch them, switch back, destroy it: the cost of a process
//! that does nothing.
//!
//! A table that is not live is plain memory on either machine, so making the space costs no trap; the hypervisor sees
//! the space when it is switched to.

use crate::exception::can_read;
use crate::kernel::{Kernel, Memory};
use crate::memory::paging::{Access, AddressSpace};
use crate::memory::{PRIVATE, direct_map};

use super::measure::{Failure, Outcome, Workload, measure};
use super::scatter::{self, Page};

const SPACES: u64 = 16;
const PAGES: u64 = 128;

pub const WORKLOAD: Workload = Workload {
    name: "address-space",
    what: "make, use and destroy 16 address spaces of 128 pages",
    unit: "space",
    run,
};

fn run(kernel: &mut Kernel) -> Result<Outcome, Failure> {
    let memory = &mut kernel.memory;
    let pages = scatter::pages(&mut memory.frames, PRIVATE, PAGES)?;
    let free = memory.frames.free_frames();
    let (lived, measured) =
        measure(memory, |memory| (0..SPACES).try_for_each(|turn| live_once(memory, &pages, turn)));
    let verified = lived.and_then(|()| verify(memory, &pages, free));
    scatter::release(&mut memory.frames, &pages);
    let mut outcome = Outcome::new(SPACES, measured);
    outcome.figures = &["pages"];
    outcome.values[0] = PAGES;
    verified.map(|()| outcome)
}

fn live_once(memory: &mut Memory, pages: &[Page], turn: u64) -> Result<(), Failure> {
    let Memory { mmu, frames, space: kernel, .. } = memory;
    let mut space = AddressSpace::new(mmu, frames, kernel)?;
    space.reserve(mmu, frames, scatter::window(PRIVATE, PAGES))?;
    for page in pages {
        space.map(mmu, page.va, page.frame, Access::ReadWrite)?;
    }
    space.activate(mmu);
    for page in pages {
        // SAFETY: the space in use maps the page to a frame of this workload.
        unsafe { (page.va as *mut u64).write_volatile(page.pattern ^ turn) };
    }
    let kept =
        // SAFETY: as above.
        pages.iter().all(|page| unsafe { (page.va as *const u64).read_volatile() } == page.pattern ^ turn);
    kernel.activate(mmu);
    space.destroy(mmu, frames);
    Failure::unless(kept, "data-lost")
}

fn verify(memory: &Memory, pages: &[Page], free: u64) -> Result<(), Failure> {
    let last = SPACES - 1;
    // SAFETY: the direct map maps all memory, and the frames are this workload's.
    let at = |page: &Page| unsafe { (direct_map(page.frame) as *const u64).read_volatile() };
    Failure::unless(pages.iter().all(|page| at(page) == page.pattern ^ last), "wrong-frame")?;
    Failure::unless(pages.iter().step_by(8).all(|page| !can_read(page.va)), "leaked-into-the-kernel")?;
    Failure::unless(memory.frames.free_frames() == free, "tables-leaked")
}
