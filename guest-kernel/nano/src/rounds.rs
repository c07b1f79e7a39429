//! How a repeated operation is timed: some rounds of it, each beside a round of the empty loop.

/// Rounds of a measurement.
pub const ROUNDS: usize = 21;
/// How long all rounds together should take, in nanoseconds.
const BUDGET_NS: u64 = 100_000_000;

/// What one repetition takes, in hundredths of a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cycles {
    /// In the fastest round.
    pub min: u64,
    /// In the median round.
    pub median: u64,
}

/// How many repetitions a round may have, if `done` of them took `ns`: so many that all rounds take about 100 ms, but
/// not more than `most`.
pub const fn repetitions_within(done: u64, ns: u64, most: u64) -> u64 {
    let round = BUDGET_NS / ROUNDS as u64;
    let fit = done as u128 * round as u128 / if ns == 0 { 1 } else { ns as u128 };
    if fit >= most as u128 {
        most
    } else if fit < 4 {
        4
    } else {
        fit as u64 & !3
    }
}

/// The processor's time stamp counter.
pub fn cycles() -> u64 {
    // SAFETY: every processor with long mode has the counter. Where CR4.TSD keeps it from programs, this faults.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Times [`ROUNDS`] rounds of `body` and of the `empty` loop. `after`, which is not timed, gets what `body` returned,
/// and returns its repetitions.
///
/// A round that something else interrupted shows in neither figure: the fastest is never one, and the median only if
/// most are.
pub fn rounds<R>(empty: impl FnMut(), body: impl FnMut() -> R, after: impl FnMut(R) -> u64) -> Cycles {
    rounds_by(cycles, empty, body, after)
}

/// The same by any clock.
pub(crate) fn rounds_by<R>(
    mut clock: impl FnMut() -> u64,
    mut empty: impl FnMut(),
    mut body: impl FnMut() -> R,
    mut after: impl FnMut(R) -> u64,
) -> Cycles {
    let (mut overhead, mut taken) = ([0; ROUNDS], [0; ROUNDS]);
    let mut repetitions = 1;
    for (overhead, taken) in overhead.iter_mut().zip(&mut taken) {
        let start = clock();
        empty();
        let between = clock();
        let result = body();
        let end = clock();
        repetitions = after(result).max(1);
        *overhead = between.wrapping_sub(start);
        *taken = end.wrapping_sub(between);
    }
    overhead.sort_unstable();
    taken.sort_unstable();
    let of = |index: usize| {
        let cycles = taken[index].saturating_sub(overhead[index]);
        (u128::from(cycles) * 100 / u128::from(repetitions)) as u64
    };
    Cycles { min: of(0), median: of(ROUNDS / 2) }
}
