//! The kernel proper: five pieces of work, and what is right about each. The port changes no line of it.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::{Machine, PAGE_SIZE};

/// Pages that are mapped when they are first used.
const LAZY: u64 = 0x1_0000_0000;
const LAZY_PAGES: u64 = 64;
/// Pages that are mapped at once.
const EAGER: u64 = 0x1_0020_0000;
const EAGER_PAGES: u64 = 512;
const TICKS: u64 = 50;
const SECTIONS: u64 = 1000;

/// Pages that were mapped by the handler of page faults.
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// Timer interrupts that were handled.
static TICKED: AtomicU64 = AtomicU64::new(0);

/// Says whether everything about it was right.
type Work = fn() -> bool;

/// Does the work that `work=NAME,NAME` on the command line names, or all of it.
pub fn main<M: Machine>(cmdline: &str) -> ! {
    M::write("a small kernel\n");
    let named = cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix("work="));
    let all: [(&str, Work); 5] = [
        ("console", console::<M>),
        ("faults", faults::<M>),
        ("map", map::<M>),
        ("ticks", ticks::<M>),
        ("sections", sections::<M>),
    ];
    for (name, work) in all {
        if named.is_none_or(|named| named.split(',').any(|one| one == name)) {
            let right = work();
            M::write(name);
            M::write(if right { ": right\n" } else { ": WRONG\n" });
        }
    }
    M::power_off()
}

/// Prints 1 KiB.
fn console<M: Machine>() -> bool {
    (0..16).for_each(|_| M::write("the quick brown fox jumps over the lazy dog, and then once more\n"));
    true
}

/// Uses pages that are not there yet.
fn faults<M: Machine>() -> bool {
    M::handle_page_faults(|address| {
        assert!((LAZY..LAZY + LAZY_PAGES * PAGE_SIZE).contains(&address), "page fault at {address:#x}");
        FAULTS.fetch_add(1, Ordering::Relaxed);
        M::map(address & !(PAGE_SIZE - 1));
    });
    fill(LAZY, LAZY_PAGES) && FAULTS.load(Ordering::Relaxed) == LAZY_PAGES
}

/// Maps many pages, and uses them.
fn map<M: Machine>() -> bool {
    M::map_all(EAGER, EAGER_PAGES);
    fill(EAGER, EAGER_PAGES)
}

/// Writes to each of these pages and reads it again: no two are the same memory.
fn fill(first: u64, count: u64) -> bool {
    let pages = || (0..count).map(|n| first + n * PAGE_SIZE);
    let word = |page: u64| crate::machine::word_at(page);
    pages().for_each(|page| word(page).store(page, Ordering::Relaxed));
    pages().all(|page| word(page).load(Ordering::Relaxed) == page)
}

/// Waits for interrupts of the timer.
fn ticks<M: Machine>() -> bool {
    M::start_ticks(|| {
        TICKED.fetch_add(1, Ordering::Relaxed);
    });
    M::wait_until(|| TICKED.load(Ordering::Relaxed) >= TICKS);
    M::stop_ticks();
    true
}

/// Enters and leaves what no interrupt may interrupt.
fn sections<M: Machine>() -> bool {
    let mut count = 0;
    (0..SECTIONS).for_each(|n| M::without_interrupts(|| count += n));
    count == SECTIONS * (SECTIONS - 1) / 2
}
