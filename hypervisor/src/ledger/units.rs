//! How times are written for people: three significant digits and the unit that keeps them short.

/// A number of nanoseconds.
pub fn nanos(ns: u64) -> String {
    nanos_f64(ns as f64)
}

/// A mean of nanoseconds.
pub fn nanos_f64(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let decimals = match value {
        v if unit == "ns" && v == v.trunc() => 0,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_whatever_the_size() {
        let cases = [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 us"),
            (12_345, "12.3 us"),
            (123_456, "123 us"),
            (7_654_321, "7.65 ms"),
            (61_000_000_000, "61.0 s"),
        ];
        for (ns, text) in cases {
            assert_eq!(nanos(ns), text);
        }
        assert_eq!(nanos_f64(0.25), "0.25 ns");
    }
}
