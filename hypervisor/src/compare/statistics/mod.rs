//! What repeated measurements say, without assuming how they are distributed.
//!
//! Times on a computer are skewed and have several peaks: means, standard deviations and Student's t would describe
//! something else. Medians, order statistics, ranks and permutations need nothing but that runs are alike.
//!
//! What may not be done here: dropping a measurement, or a function of libm. Loading that library would cost each start
//! of the program, `run` included (see `cli/progress.rs`), so that probabilities are products and sums alone.

pub(super) mod permutation;
pub(super) mod shuffle;

use serde::Serialize;

/// How sure an interval is to be.
const CONFIDENCE: f64 = 0.95;
/// Tukey's fences: how many interquartile ranges from the quartiles a measurement is an outlier.
const FENCE: f64 = 1.5;
/// With fewer measurements, quartiles say too little to call one of them an outlier.
const ENOUGH_FOR_OUTLIERS: usize = 5;

/// How measurements spread.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Their median; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The lower end of the interval in which the true median lies.
    pub low: f64,
    /// The upper end of it.
    pub high: f64,
    /// With which probability it does: at least 0.95, or what the range of all measurements gives if they are too few.
    pub confidence: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// Which of them, by number from 0, are far from the others (Tukey's fences). They are part of all of the above.
    pub outliers: Vec<usize>,
}

impl Spread {
    /// Of these; nothing of fewer than two.
    pub fn of(measured: &[f64]) -> Option<Self> {
        let mut sorted = measured.to_vec();
        sorted.sort_by(f64::total_cmp);
        let [min, .., max] = sorted[..] else { return None };
        let (rank, confidence) = ranks(sorted.len());
        let at = |index: usize| sorted.get(index).copied().unwrap_or(max);
        Some(Self {
            median: median(&sorted)?,
            low: at(rank),
            high: at(sorted.len() - 1 - rank),
            confidence,
            min,
            max,
            outliers: outliers(measured, &sorted),
        })
    }
}

/// The median of sorted measurements.
pub(super) fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some((lower + upper) / 2.0)
}

/// Which of `n` sorted measurements, counted from either end, bounds the interval, and how sure that interval is.
///
/// Each measurement is below the true median with probability 1/2, whatever the distribution. So the number of those
/// below is binomial, and the interval from the k-th to the k-th from the end (from 0) misses the median with the
/// probability of at most k below, twice. The greatest k that keeps the confidence is taken; 0 if none does.
fn ranks(n: usize) -> (usize, f64) {
    let count = n as f64;
    // The probability of exactly `k` below: (n choose k) / 2^n. A thousand halvings, which is all
    // that `--repeat` allows and `Recorded::parse` takes, are no underflow.
    let mut exactly = (0..n).fold(1.0, |p, _| p / 2.0);
    let (mut missed, mut found) = (2.0 * exactly, (0, 1.0 - 2.0 * exactly));
    for k in 1..n / 2 {
        exactly *= (count - (k - 1) as f64) / k as f64;
        missed += 2.0 * exactly;
        if 1.0 - missed < CONFIDENCE {
            break;
        }
        found = (k, 1.0 - missed);
    }
    found
}

fn outliers(measured: &[f64], sorted: &[f64]) -> Vec<usize> {
    if measured.len() < ENOUGH_FOR_OUTLIERS {
        return Vec::new();
    }
    let (first, third) = (quantile(sorted, 0.25), quantile(sorted, 0.75));
    let fence = FENCE * (third - first);
    let is_far = |value: f64| value < first - fence || value > third + fence;
    measured.iter().enumerate().filter(|(_, value)| is_far(**value)).map(|(run, _)| run).collect()
}

/// Between the two nearest measurements, in proportion.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = part * sorted.len().saturating_sub(1) as f64;
    let below = place as usize;
    let at = |index: usize| sorted.get(index).or(sorted.last()).copied().unwrap_or(0.0);
    at(below) + (place - below as f64) * (at(below + 1) - at(below))
}

#[cfg(test)]
mod tests;
