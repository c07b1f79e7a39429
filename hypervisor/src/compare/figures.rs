//! Numbers in a few characters, for tables with many columns.

/// A quotient: two significant digits, more only before the point.
pub(super) fn ratio(value: f64) -> String {
    match value {
        v if v >= 9.95 => count(v),
        v if v >= 0.995 => format!("{v:.1}"),
        v if v >= 0.0095 => format!("{v:.2}"),
        v if v >= 0.00095 => format!("{v:.3}"),
        v if v >= 0.00005 => format!("{v:.4}").trim_start_matches('0').to_owned(),
        v if v > 0.0 => "~0".to_owned(),
        _ => "0".to_owned(),
    }
}

/// A number of things, in four characters from 10,000 on.
pub(super) fn count(value: f64) -> String {
    match value {
        v if v < 9_999.5 => format!("{v:.0}"),
        v if v < 999_500.0 => format!("{:.0}k", v / 1e3),
        v if v < 9_950_000.0 => format!("{:.1}M", v / 1e6),
        v => format!("{:.0}M", v / 1e6),
    }
}

/// Things for each operation: whole where that is right to one in fifty.
pub(super) fn each(value: f64) -> String {
    match value {
        v if (v - v.round()).abs() < 0.02 * v.max(1.0) => count(v.round()),
        v if v < 0.995 => format!("{v:.2}").trim_start_matches('0').to_owned(),
        v => format!("{v:.1}"),
    }
}

/// Cycles of an operation.
pub(super) fn cycles(value: f64) -> String {
    match value {
        v if v < 9.95 => format!("{v:.1}"),
        v if v < 9_999.5 => format!("{v:.0}"),
        v if v < 99_950.0 => format!("{:.1}k", v / 1e3),
        v => count(v),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_characters_at_most() {
        let cases = [
            (1234.0, "1234"),
            (12_345.0, "12k"),
            (25.4, "25"),
            (9.96, "10"),
            (1.42, "1.4"),
            (0.996, "1.0"),
            (0.126, "0.13"),
            (0.0061, "0.006"),
            (0.00012, ".0001"),
            (0.00001, "~0"),
            (0.0, "0"),
        ];
        for (value, text) in cases {
            assert_eq!(ratio(value), text);
            assert!(text.len() <= 5);
        }
    }

    #[test]
    fn counts_are_exact_while_they_are_short() {
        for (value, text) in
            [(0.0, "0"), (9999.0, "9999"), (12_290.0, "12k"), (999_999.0, "1.0M"), (25e6, "25M")]
        {
            assert_eq!(count(value), text);
        }
    }

    #[test]
    fn a_few_stray_exits_do_not_hide_the_rule() {
        for (value, text) in
            [(1.0, "1"), (1.003, "1"), (0.004, "0"), (0.25, ".25"), (2.5, "2.5"), (512.2, "512")]
        {
            assert_eq!(each(value), text);
        }
    }

    #[test]
    fn cycles_have_a_digit_after_the_point_where_it_counts() {
        for (value, text) in [(0.7, "0.7"), (14.2, "14"), (14_600.0, "14.6k"), (146_000.0, "146k")] {
            assert_eq!(cycles(value), text);
        }
    }
}
