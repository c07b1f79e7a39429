//! Floating point: the same calculation gives the same bits, whoever else calculates meanwhile.

use crate::random::Random;
use crate::{Outcome, spoils, sys};

/// Steps of a calculation, long enough for the processor to be taken away meanwhile.
const STEPS: u32 = 60_000;

/// Calculates twice, once with other processes that round otherwise, and compares bits.
pub fn run(random: &mut Random) -> Outcome {
    let start = random.below(1000) as f64 / 7.0;
    let alone = calculate(start);
    let others: Vec<_> = (0..2)
        .map(|n| sys::fork(move || i32::from(calculate(f64::from(n)) != calculate(f64::from(n)))))
        .collect::<Result<_, _>>()?;
    let mut together = calculate(start);
    for other in others {
        if sys::wait(other)? != 0 {
            return Err("a child calculated differently".into());
        }
    }
    if spoils("numbers") {
        together = f64::from_bits(together.to_bits() ^ 1);
    }
    if alone.to_bits() == together.to_bits() {
        Ok(())
    } else {
        Err(format!("{:#x} instead of {:#x}", together.to_bits(), alone.to_bits()))
    }
}

/// A chain in which every step depends on all bits of the one before.
fn calculate(start: f64) -> f64 {
    (1..STEPS).fold(start, |x, n| (x * 1.000_001 + f64::from(n).sqrt() / 3.0).sqrt() + x / 3.0)
}
