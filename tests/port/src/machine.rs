//! What the kernel wants of its machine.
//!
//! What may not be done here: anything that is not a function's meaning. Each step has its own answers.

/// A page is 4 KiB.
pub const PAGE_SIZE: u64 = 4096;

// ANCHOR: machine
/// A machine, real or virtual.
pub trait Machine {
    /// Prints.
    fn write(text: &str);

    /// From now on `handler` is called with the address of each page fault; what faulted is then done again.
    fn handle_page_faults(handler: fn(u64));

    /// Maps a page to a frame that nobody uses, for reading and writing.
    fn map(page: u64);

    /// The same for `count` pages, one after the other.
    fn map_all(first: u64, count: u64) {
        (0..count).for_each(|n| Self::map(first + n * PAGE_SIZE));
    }

    /// From now on `tick` is called a thousand times a second, as an interrupt.
    fn start_ticks(tick: fn());

    /// No more ticks.
    fn stop_ticks();

    /// Runs `f`, which no interrupt interrupts.
    fn without_interrupts<R>(f: impl FnOnce() -> R) -> R;

    /// Waits for interrupts until `done`, without using the processor.
    fn wait_until(done: impl FnMut() -> bool);

    /// The end.
    fn power_off() -> !;
}
// ANCHOR_END: machine

/// The first word of a page that is mapped, or will be when it is used.
pub fn word_at(page: u64) -> &'static core::sync::atomic::AtomicU64 {
    // SAFETY: the kernel uses the pages of its two regions for nothing else, and a word of theirs has no other type.
    unsafe { &*(page as *const core::sync::atomic::AtomicU64) }
}
