//! The table of them: what each repeats, how often, and what must come of it.

use crate::loops::{self, TARGETS};

/// Words that [`ALU`] works on: 32 KiB.
pub const ALU_WORDS: usize = 4096;
/// The bits that each pass of [`ALU`] inverts.
const ALU_MASK: u64 = 0x00ff_00ff_00ff_00ff;

/// What they work on. Its owner keeps it, so that neither a stack nor a static has to have room for it.
#[derive(Debug)]
pub struct Data<'a> {
    /// How many passes [`ALU`] has made over the words.
    passes: u64,
    pub(crate) words: &'a mut [u64; ALU_WORDS],
}

impl<'a> Data<'a> {
    /// Fills `words`.
    pub fn new(words: &'a mut [u64; ALU_WORDS]) -> Self {
        for (word, number) in words.iter_mut().zip(0..) {
            *word = initial(number);
        }
        Self { passes: 0, words }
    }
}

/// What word `number` is at first, and after every second pass.
const fn initial(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What one run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Repetitions.
    pub repetitions: u64,
    /// Whether the result is right.
    pub right: bool,
}

/// A nanobenchmark that only computes.
#[derive(Clone, Copy, Debug)]
pub struct Compute {
    /// Its name.
    pub name: &'static str,
    /// What is repeated, in one line.
    pub what: &'static str,
    /// What one repetition is called.
    pub unit: &'static str,
    /// Repetitions of one full run.
    pub repetitions: u64,
    run: fn(&mut Data<'_>, u64) -> Run,
    right: fn(&Run) -> bool,
    empty: Option<extern "C" fn(u64)>,
}

/// What came of a run.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Repetitions, or what [`Compute::right`] needs in place of them.
    count: u64,
    repetitions: u64,
    /// Passes that had been made before.
    before: u64,
    result: u64,
}

impl Run {
    const fn of(count: u64, result: u64) -> Self {
        Self { count, repetitions: count, before: 0, result }
    }
}

impl Compute {
    /// Repeats it `n` times, or a little less often, but at least once.
    pub fn run(&self, data: &mut Data<'_>, n: u64) -> Timed<'_> {
        Timed { of: self, run: (self.run)(data, n) }
    }

    /// The loop of [`run`](Self::run) without its body. Nothing where the loop is part of what is measured.
    pub fn empty(&self, n: u64) {
        if let Some(empty) = self.empty {
            empty(whole(n));
        }
    }
}

/// A run that has been made and whose result has not been looked at, so that looking is not timed.
#[derive(Clone, Copy, Debug)]
pub struct Timed<'a> {
    of: &'a Compute,
    run: Run,
}

impl Timed<'_> {
    /// Repetitions made.
    pub const fn repetitions(&self) -> u64 {
        self.run.repetitions
    }

    /// Looks at the result.
    pub fn done(&self) -> Done {
        Done { repetitions: self.run.repetitions, right: (self.of.right)(&self.run) }
    }
}

/// What the loops take: a multiple of four that is not 0.
const fn whole(n: u64) -> u64 {
    if n < 4 { 4 } else { n & !3 }
}

/// CALL and RET of a leaf.
pub const CALLRET: Compute = Compute {
    name: "callret",
    what: "CALL of a leaf of one ADD, RET",
    unit: "call",
    repetitions: 100_000,
    run: |_, n| Run::of(whole(n), loops::callret(whole(n))),
    right: |run| run.result == run.count,
    empty: Some(loops::empty),
};

/// Indirect calls with one target.
pub const INDIRECT_1: Compute = indirect(
    "indirect-1",
    "CALL through a table, always of the same function",
    |_, n| call_through::<1>(n),
    right_sum::<1>,
);
/// Indirect calls of four targets in turn.
pub const INDIRECT_4: Compute = indirect(
    "indirect-4",
    "CALL through a table, 4 functions in turn",
    |_, n| call_through::<4>(n),
    right_sum::<4>,
);
/// Indirect calls of sixteen targets in turn.
pub const INDIRECT_16: Compute = indirect(
    "indirect-16",
    "CALL through a table, 16 functions in turn",
    |_, n| call_through::<16>(n),
    right_sum::<16>,
);

const fn indirect(
    name: &'static str,
    what: &'static str,
    run: fn(&mut Data<'_>, u64) -> Run,
    right: fn(&Run) -> bool,
) -> Compute {
    Compute { name, what, unit: "call", repetitions: 100_000, run, right, empty: Some(loops::indirect_empty) }
}

fn call_through<const COUNT: u32>(n: u64) -> Run {
    const { assert!(COUNT.is_power_of_two() && COUNT as usize <= TARGETS.len()) };
    // SAFETY: the table of the targets; the mask was checked above.
    Run::of(whole(n), unsafe { loops::indirect(whole(n), TARGETS.as_ptr(), COUNT - 1) })
}

/// Target k adds k + 1.
fn right_sum<const COUNT: u64>(run: &Run) -> bool {
    let (turns, rest) = (run.count / COUNT, run.count % COUNT);
    run.result == turns * (COUNT * (COUNT + 1) / 2) + rest * (rest + 1) / 2
}

/// The recursion that compares calls with everything else.
pub const FIB: Compute = Compute {
    name: "fib",
    what: "fib(24), recursively: a call, two comparisons and some stack",
    unit: "call",
    repetitions: calls(FIB_MAX),
    run: |_, n| {
        let k = (3..=FIB_MAX).rev().find(|&k| calls(k) <= n).unwrap_or(2);
        Run { count: k, repetitions: calls(k), before: 0, result: loops::fib(k) }
    },
    right: |run| run.result == fibonacci(run.count),
    empty: None,
};

const FIB_MAX: u64 = 24;

const fn fibonacci(k: u64) -> u64 {
    let (mut a, mut b, mut i) = (0, 1, 0);
    while i < k {
        (a, b, i) = (b, a + b, i + 1);
    }
    a
}

/// How many calls the recursion for `k` makes, the first one included.
const fn calls(k: u64) -> u64 {
    2 * fibonacci(k + 1) - 1
}

/// Arithmetic over memory.
pub const ALU: Compute = Compute {
    name: "alu",
    what: "9 instructions for each word of 32 KiB, one of them loads, one stores",
    unit: "word",
    repetitions: 64 * ALU_WORDS as u64,
    run: |data, n| {
        let passes = (n / ALU_WORDS as u64).max(1);
        let before = data.passes;
        data.passes += passes;
        // SAFETY: the words that `Data` borrows; at least one pass.
        let result = unsafe { loops::alu(data.words.as_mut_ptr(), passes, ALU_MASK) };
        Run { count: passes, repetitions: passes * ALU_WORDS as u64, before, result }
    },
    right: |run| {
        // A pass finds the words as they were at first, or with the mask's bits inverted.
        let after = [checksum(ALU_MASK), checksum(0)];
        let of = |turn: u64| after[(turn % 2) as usize];
        let pairs = after[0].wrapping_add(after[1]).wrapping_mul(run.count / 2);
        let expected = if run.count.is_multiple_of(2) { pairs } else { pairs.wrapping_add(of(run.before)) };
        run.result == expected
    },
    empty: None,
};

/// The checksum of a pass that leaves each word with these bits inverted.
fn checksum(inverted: u64) -> u64 {
    (0..ALU_WORDS as u64).fold(0u64, |sum, number| {
        sum.wrapping_mul(5).wrapping_add((initial(number) ^ inverted).rotate_left(7))
    })
}

/// All of them.
pub const COMPUTE: [Compute; 6] = [CALLRET, INDIRECT_1, INDIRECT_4, INDIRECT_16, FIB, ALU];
