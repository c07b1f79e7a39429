//! Operations of a machine that nanobenchmarks repeat, and what both machines' operations have in common.
//!
//! An operation that both machines have does the same work for the kernel, each in its machine's way. What is repeated
//! is assembly wherever the very instruction matters.

use crate::interrupts::timer;
use crate::memory::frames::Frame;
use crate::memory::paging::{Access, MapError, Mmu, Span, Stale};
use crate::memory::{Memory, SCRATCH, direct_map};

use super::interface::Machine;

/// What an operation works on: prepared before, and passed to each run.
pub type Arguments = [u64; 3];

/// An operation of the machine with page-table primitives `M`.
pub struct Primitive<M: 'static> {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// What is repeated, in one line.
    pub what: &'static str,
    /// What one repetition is called.
    pub unit: &'static str,
    /// Repetitions of a full run.
    pub repetitions: u64,
    /// The most repetitions of another run.
    pub most: u64,
    /// Repetitions are made in multiples of this.
    pub grain: u64,
    /// Prepares everything, with interrupts off.
    pub prepare: fn(&mut Memory<M>) -> Result<Arguments, MapError>,
    /// Repeats it so many times; may leave interrupts on.
    pub body: unsafe extern "C" fn(u64, u64, u64, u64) -> u64,
    /// The loop around the body.
    pub empty: extern "C" fn(u64),
    /// Whether all that was done had its effect.
    pub right: fn(&mut Memory<M>, &Did) -> bool,
    /// Whether the page at the last argument must not be readable afterwards.
    pub unmapped: bool,
    /// Undoes what `prepare` did.
    pub finish: fn(&mut Memory<M>, Arguments),
}

/// What has been done of an operation.
pub struct Did {
    /// What `prepare` returned.
    pub arguments: Arguments,
    /// All repetitions since then.
    pub all: u64,
    /// The repetitions of the last run.
    pub last: u64,
    /// What the last run returned.
    pub returned: u64,
}

impl Did {
    /// Nothing, so far.
    pub const fn nothing(arguments: Arguments) -> Self {
        Self { arguments, all: 0, last: 0, returned: 0 }
    }
}

impl<M: Mmu> Primitive<M> {
    /// An operation that needs no preparation, is repeated 1000 times, and whose effect is `right`.
    pub const fn new(
        name: &'static str,
        what: &'static str,
        body: unsafe extern "C" fn(u64, u64, u64, u64) -> u64,
        right: fn(&mut Memory<M>, &Did) -> bool,
    ) -> Self {
        Self {
            name,
            what,
            unit: "operation",
            repetitions: 1000,
            most: 10_000,
            grain: 4,
            prepare: |_| Ok([0; 3]),
            body,
            empty: paravane_nano::empty,
            right,
            unmapped: false,
            finish: |_, _| (),
        }
    }

    /// Repeats it about `n` times: a multiple of the grain, and at least once.
    pub fn run(&self, did: &mut Did, n: u64) -> u64 {
        let n = (n - n % self.grain).max(self.grain);
        let [a, b, c] = did.arguments;
        // SAFETY: the machine layer's body, with what its own `prepare` returned.
        did.returned = unsafe { (self.body)(n, a, b, c) };
        did.last = n;
        did.all += n;
        n
    }
}

/// The bytes that are read from the page of [`scratch_page`].
pub const SCRATCH_WORD: u64 = 0x7363_7261_7463_6821;

/// Maps a page of its own at [`SCRATCH`]; returns the table with its entry, the entry's index, and the entry.
pub fn scratch_page<M: Mmu>(memory: &mut Memory<M>) -> Result<(Frame, usize, u64), MapError> {
    let Memory { mmu, frames, space, .. } = memory;
    let frame = frames.allocate().ok_or(MapError::OutOfFrames)?;
    // SAFETY: the direct map maps all memory, and the frame was just allocated.
    unsafe { (direct_map(frame) as *mut u64).write_volatile(SCRATCH_WORD) };
    space.reserve(mmu, frames, Span::pages(SCRATCH, 1))?;
    space.map(mmu, SCRATCH, frame, Access::ReadWrite)?;
    mmu.flush(Stale::Nothing);
    // SAFETY: just mapped. From here on the page is in use, and so are its tables.
    unsafe { (SCRATCH as *const u64).read_volatile() };
    let (table, index) = space.slot(mmu, SCRATCH).ok_or(MapError::NoTable(SCRATCH))?;
    Ok((table, index, mmu.read(table, index)))
}

/// Unmaps the page of [`scratch_page`], whose entry was `entry`, if it is mapped, and frees its frame.
pub fn release_scratch_page<M: Mmu>(memory: &mut Memory<M>, entry: u64) {
    let Memory { mmu, frames, space, .. } = memory;
    space.unmap(mmu, SCRATCH);
    mmu.flush(Stale::Page(SCRATCH));
    if let Err(error) = frames.free(mmu.frame(entry)) {
        panic!("a nanobenchmark's frame was freed by someone else: {error:?}");
    }
}

/// Whether an interrupt that became pending while interrupts were off waits for `pair`, which turns them off and on,
/// and arrives then. Leaves interrupts off.
pub fn interrupt_waits_for<T: Machine>(mut pair: impl FnMut()) -> bool {
    const DELAY_NS: u64 = 50_000;
    const PATIENCE_NS: u64 = 1_000_000_000;
    T::interrupts_off();
    let before = timer::count();
    let deadline = T::clock() + DELAY_NS;
    T::arm_timer(deadline);
    while T::clock() < deadline + DELAY_NS {
        core::hint::spin_loop();
    }
    let waited = timer::count() == before;
    // A busy host may be late; an interrupt is never lost.
    while timer::count() == before && T::clock() < deadline + PATIENCE_NS {
        pair();
    }
    T::interrupts_off();
    waited && timer::count() == before + 1
}

/// A store into an instruction, which is then run. Code is memory like any other on both machines.
pub const fn smc<M: Mmu>() -> Primitive<M> {
    extern "C" fn body(n: u64, code: u64, _: u64, _: u64) -> u64 {
        // SAFETY: `prepare` allocated the frame; the direct map can be written and executed.
        unsafe { paravane_nano::smc(n, code as *mut u8) }
    }
    Primitive {
        prepare: |memory| {
            let frame = memory.frames.allocate().ok_or(MapError::OutOfFrames)?;
            Ok([direct_map(frame), frame.0, 0])
        },
        finish: |memory, [_, frame, _]| {
            if let Err(error) = memory.frames.free(Frame(frame)) {
                panic!("a nanobenchmark's frame was freed by someone else: {error:?}");
            }
        },
        ..Primitive::new("smc", "store into an instruction's immediate, then run it", body, |_, did| {
            did.returned == did.last * (did.last + 1) / 2
        })
    }
}
