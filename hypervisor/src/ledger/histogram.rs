//! A log-linear histogram: every power of two is split into equal steps, so that a value is known to one part
//! in eight whatever its size.
//!
//! Only the arithmetic is here. The counters are slices of one allocation that the ledger makes untouched
//! (zero pages from the host's kernel), so that 140 causes cost nothing at start-up but what they use; a
//! ready-made histogram for each would touch hundreds of kilobytes before the guest runs.

/// log2 of how many steps a power of two is split into.
const STEP_BITS: u32 = 3;
const STEPS: u64 = 1 << STEP_BITS;
/// Values from here on share the last bucket: 2^40 ns is 18 minutes.
const MAX_BITS: u32 = 40;

/// How many counters a histogram has.
pub(super) const BUCKETS: usize = ((MAX_BITS - STEP_BITS + 1) << STEP_BITS) as usize;

/// The bucket that counts `value`.
pub(super) const fn bucket(value: u64) -> usize {
    let value = if value >> MAX_BITS == 0 { value } else { (1 << MAX_BITS) - 1 };
    if value < STEPS {
        return value as usize;
    }
    let exponent = value.ilog2() - STEP_BITS;
    // The top STEP_BITS + 1 bits of the value, whose highest is 1, numbered on from the exponent's first.
    ((exponent as u64 * STEPS) + (value >> exponent)) as usize
}

/// The largest value that `bucket` counts.
pub(super) const fn highest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * STEPS {
        return bucket;
    }
    let exponent = bucket / STEPS - 1;
    ((bucket % STEPS + STEPS + 1) << exponent) - 1
}

/// The value below or at which `percent` of those counted lie; 0 when nothing was.
pub(super) fn percentile(counts: &[u64], percent: f64) -> u64 {
    let total: u64 = counts.iter().sum();
    let wanted = (total as f64 * percent / 100.0).ceil().max(1.0) as u64;
    let mut seen = 0u64;
    for (i, n) in counts.iter().enumerate() {
        seen += n;
        if seen >= wanted {
            return highest(i);
        }
    }
    0
}

/// The buckets that counted something: (highest value, count), in order.
pub(super) fn occupied(counts: &[u64]) -> Vec<(u64, u64)> {
    counts.iter().enumerate().filter(|(_, n)| **n != 0).map(|(i, n)| (highest(i), *n)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_range_is_covered_without_gaps() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for i in 0..BUCKETS {
            assert_eq!(bucket(highest(i)), i);
            assert!(i == BUCKETS - 1 || bucket(highest(i) + 1) == i + 1);
        }
    }

    #[test]
    fn percentiles_of_a_known_set() {
        let mut counts = vec![0; BUCKETS];
        assert_eq!(percentile(&counts, 50.0), 0);
        for v in 1..=7 {
            counts[bucket(v)] += 1;
        }
        counts[bucket(1 << 30)] += 1;
        assert_eq!(percentile(&counts, 50.0), 4);
        assert_eq!(percentile(&counts, 0.0), 1);
        assert_eq!(bucket(percentile(&counts, 100.0)), bucket(1 << 30));
    }

    proptest! {
        #[test]
        fn a_value_is_known_to_one_part_in_eight(value in 0u64..1 << MAX_BITS) {
            let top = highest(bucket(value));
            prop_assert!(value <= top && top - value <= value / STEPS);
        }
    }
}
