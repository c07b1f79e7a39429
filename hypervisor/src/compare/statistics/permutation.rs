//! Whether two sets of measurements differ by more than chance would explain.
//!
//! The test of Wilcoxon, Mann and Whitney: if the sets are alike, each division of the joint ranks into two sets of
//! these sizes is as likely as the one that was found. The p-value is the share of divisions that are as uneven. Equal
//! measurements share their mean rank; the divisions are those of the ranks as they are, so ties need no correction.

use super::shuffle::Random;

/// Up to so many measurements altogether all divisions are counted.
const COUNTED: usize = 24;
/// Beyond that so many are drawn,
const DRAWN: u32 = 100_000;
/// or fewer, once so many of them were as uneven (Besag and Clifford 1991: the share is valid as a p-value).
const ENOUGH: u32 = 50;
/// The drawing is the same each time.
const SEED: u64 = 0x1945;

/// How likely a difference like that between `a` and `b`, or a greater one, is by chance. 1 if either is empty.
pub(in crate::compare) fn p_value(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    let ranks = doubled_ranks(a, b);
    let of_a: u64 = ranks.iter().take(a.len()).sum();
    let all: u64 = ranks.iter().sum();
    // Compared as whole numbers: n times the sum of a's ranks is expected to be a.len() times the sum of all.
    let uneven = |sum: u64| (sum * ranks.len() as u64).abs_diff(all * a.len() as u64);
    if ranks.len() <= COUNTED {
        counted(&ranks, a.len(), |sum| uneven(sum) >= uneven(of_a))
    } else {
        drawn(ranks.clone(), a.len(), |sum| uneven(sum) >= uneven(of_a))
    }
}

/// Twice the rank of each, those of `a` first, so that shared ranks are whole.
fn doubled_ranks(a: &[f64], b: &[f64]) -> Vec<u64> {
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    let mut sorted = all.clone();
    sorted.sort_by(f64::total_cmp);
    let rank = |value: &f64| {
        let below = sorted.partition_point(|other| other.total_cmp(value).is_lt());
        let not_above = sorted.partition_point(|other| other.total_cmp(value).is_le());
        (below + not_above + 1) as u64
    };
    all.iter().map(rank).collect()
}

/// Counts, rank by rank, how many choices of so many ranks have each sum.
fn counted(ranks: &[u64], chosen: usize, as_uneven: impl Fn(u64) -> bool) -> f64 {
    let sums = usize::try_from(ranks.iter().sum::<u64>()).unwrap_or(0) + 1;
    let mut ways = vec![vec![0u64; sums]; chosen + 1];
    if let Some(none) = ways.first_mut().and_then(|row| row.first_mut()) {
        *none = 1;
    }
    for rank in ranks.iter().filter_map(|rank| usize::try_from(*rank).ok()) {
        for size in (1..=chosen).rev() {
            let Ok([smaller, larger]) = ways.get_disjoint_mut([size - 1, size]) else { continue };
            larger.iter_mut().skip(rank).zip(smaller.iter()).for_each(|(to, from)| *to += from);
        }
    }
    let of_size = ways.pop().unwrap_or_default();
    let all: u64 = of_size.iter().sum();
    let hits: u64 = (0..).zip(&of_size).filter(|(sum, _)| as_uneven(*sum)).map(|(_, ways)| ways).sum();
    hits as f64 / all.max(1) as f64
}

/// The share of random divisions, that which was found among them.
fn drawn(mut ranks: Vec<u64>, chosen: usize, as_uneven: impl Fn(u64) -> bool) -> f64 {
    let (mut random, mut hits) = (Random::new(SEED), 0);
    for round in 1..=DRAWN {
        random.shuffle(&mut ranks);
        hits += u32::from(as_uneven(ranks.iter().take(chosen).sum()));
        if hits == ENOUGH {
            return f64::from(hits) / f64::from(round);
        }
    }
    f64::from(hits + 1) / f64::from(DRAWN + 1)
}

/// Which of many differences are beyond chance, so that of those on average 1 in 20 is wrong at most: Benjamini and
/// Hochberg's procedure. Among a thousand comparisons of the same thing with itself, fifty have a p-value below 0.05.
pub(in crate::compare) fn discoveries(p_values: &[f64], wrong: f64) -> Vec<bool> {
    let mut sorted = p_values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len() as f64;
    let passes = |(index, p): (usize, &f64)| *p <= wrong * (index + 1) as f64 / count;
    let limit = sorted.iter().enumerate().rev().find(|(index, p)| passes((*index, *p))).map(|(_, p)| *p);
    p_values.iter().map(|p| limit.is_some_and(|limit| *p <= limit)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn p_values_are_those_of_the_tables() {
        let of = |a: &[u32], b: &[u32]| {
            let [a, b] = [a, b].map(|x| x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
            p_value(&a, &b)
        };
        assert_eq!(of(&[1, 2, 3], &[4, 5, 6]), 0.1, "2 of 20 divisions");
        assert_eq!(of(&[1, 2, 3, 4, 5], &[6, 7, 8, 9, 10]), 2.0 / 252.0);
        assert_eq!(of(&[1, 2, 3, 4, 6], &[5, 7, 8, 9, 10]), 4.0 / 252.0);
        assert_eq!(of(&[7, 7, 7], &[7, 7, 7, 7]), 1.0, "nothing differs");
        assert_eq!(of(&[], &[1]), 1.0);
        assert_eq!(of(&[1, 1, 1], &[2, 2, 2]), 0.1, "ties within a set change nothing");
    }

    #[test]
    fn many_measurements_are_judged_by_drawing() {
        let low: Vec<f64> = (0..30).map(f64::from).collect();
        let shifted: Vec<f64> = low.iter().map(|v| v + 40.0).collect();
        assert!(p_value(&low, &shifted) < 1e-4);
        assert!(p_value(&low, &low) > 0.9);
    }

    #[test]
    fn the_more_is_asked_the_less_is_believed() {
        assert_eq!(discoveries(&[0.001, 0.04, 0.9], 0.05), [true, false, false]);
        assert_eq!(discoveries(&[0.04], 0.05), [true]);
        assert_eq!(discoveries(&[0.03, 0.04, 0.045], 0.05), [true; 3]);
        assert!(discoveries(&[], 0.05).is_empty());
    }

    /// Of equals, 1 in 20 is called different at the level of 0.05, and no more.
    #[test]
    fn equals_are_rarely_called_different() {
        let mut random = Random::new(3);
        let mut set = || std::array::from_fn::<f64, 8, _>(|_| random.below(1_000_000) as f64);
        let called = (0..500).filter(|_| p_value(&set(), &set()) <= 0.05).count();
        assert!(called <= 40, "{called} of 500");
    }

    proptest! {
        #[test]
        fn a_p_value_is_a_probability_and_has_no_side(
            a in prop::collection::vec(0.0..9.0f64, 1..9), b in prop::collection::vec(0.0..9.0f64, 1..9),
        ) {
            let p = p_value(&a, &b);
            prop_assert!(p > 0.0 && p <= 1.0);
            prop_assert!((p - p_value(&b, &a)).abs() < 1e-12);
        }
    }
}
