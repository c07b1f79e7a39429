//! How times and sizes are written for people: at most three significant digits and the unit that keeps them
//! short.

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

/// A number of bytes, in powers of 1024; as a whole number where it is one.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let exponent = n.checked_ilog2().unwrap_or(0) / 10;
    let unit = UNITS.get(exponent as usize).copied().unwrap_or("bytes");
    let one = 1u64 << (10 * exponent);
    if n.is_multiple_of(one) {
        return format!("{} {unit}", n / one);
    }
    let value = n as f64 / one as f64;
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use crate::text::units::*;

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

    #[test]
    fn sizes_have_one_unit() {
        let cases = [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1 << 20, "1 MiB"),
            (1536 << 10, "1.50 MiB"),
            (64 << 30, "64 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
    }
}
