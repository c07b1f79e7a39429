//! Floating point: the same calculation gives the same bits, whatever other processes calculate meanwhile.

use crate::random::Random;
use crate::{Outcome, spoils, sys};

/// The number of steps of a calculation: enough for the kernel to preempt it.
const STEPS: u32 = 60_000;

/// Calculates twice, once beside processes with another rounding mode, and compares the bits.
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

/// A calculation in which every step depends on all bits of the previous one.
fn calculate(start: f64) -> f64 {
    (1..STEPS).fold(start, |x, n| (x * 1.000_001 + f64::from(n).sqrt() / 3.0).sqrt() + x / 3.0)
}
