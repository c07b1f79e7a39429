use proptest::prelude::*;

use super::shuffle::Random;
use super::*;

/// From tables of the binomial distribution with p = 1/2.
#[test]
fn intervals_are_those_of_the_binomial_distribution() {
    let close = |n: usize, rank: usize, confidence: f64| {
        let found = ranks(n);
        assert!(found.0 == rank && (found.1 - confidence).abs() < 5e-5, "{n}: {found:?}");
    };
    close(2, 0, 0.5);
    close(5, 0, 0.9375);
    close(6, 0, 0.96875);
    close(9, 1, 0.9609);
    close(20, 5, 0.9586);
    let (rank, confidence) = ranks(1000);
    assert!(rank == 468 && confidence >= CONFIDENCE, "{rank} {confidence}");
}

#[test]
fn one_measurement_has_no_spread() {
    assert_eq!(Spread::of(&[]), None);
    assert_eq!(Spread::of(&[3.0]), None);
    let two = Spread::of(&[3.0, 1.0]).unwrap();
    assert_eq!((two.median, two.low, two.high, two.confidence), (2.0, 1.0, 3.0, 0.5));
}

#[test]
fn an_outlier_is_told_and_kept() {
    let spread = Spread::of(&[10.0, 11.0, 90.0, 10.0, 12.0, 11.0, 10.0]).unwrap();
    assert_eq!((spread.outliers.as_slice(), spread.max), (&[2][..], 90.0));
    assert_eq!(Spread::of(&[1.0, 1.0, 1.0, 90.0]).unwrap().outliers, [0usize; 0], "too few to say");
}

/// The claim of the confidence, on a skewed distribution: of 4000 intervals about 1 in 30 misses the true median.
#[test]
fn the_interval_holds_the_true_median_as_often_as_it_says() {
    let mut random = Random::new(7);
    let mut skewed = || {
        let uniform = random.below(1 << 20) as f64 / f64::from(1 << 20);
        1.0 / (1.0 - uniform * 0.99)
    };
    let truth = 1.0 / (1.0 - 0.5 * 0.99);
    let (mut held, rounds, claimed) = (0u32, 4000, ranks(11).1);
    for _ in 0..rounds {
        let spread = Spread::of(&std::array::from_fn::<f64, 11, _>(|_| skewed())).unwrap();
        held += u32::from(spread.low <= truth && truth <= spread.high);
    }
    let share = f64::from(held) / f64::from(rounds);
    assert!((share - claimed).abs() < 0.015, "{share} instead of {claimed}");
}

proptest! {
    #[test]
    fn an_interval_is_ordered(measured in prop::collection::vec(0.0..1e12f64, 2..60)) {
        let s = Spread::of(&measured).unwrap();
        prop_assert!(s.min <= s.low && s.low <= s.median && s.median <= s.high && s.high <= s.max);
        prop_assert!(s.outliers.iter().all(|run| *run < measured.len()));
    }
}
