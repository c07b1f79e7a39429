//! Memory sizes and times as people type them.

use std::time::Duration;

/// Bytes from `64M`, `1G`, `2GiB`, `4096K`; a bare number is MiB, as in QEMU's `-m` and xl's `memory`.
///
/// Suffixes are powers of 1024. The result is a positive multiple of 4096.
pub(super) fn memory(text: &str) -> Result<u64, String> {
    let (digits, unit) = split(text);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => 10,
        "" | "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("unknown unit `{unit}`: use K, M, G or T (powers of 1024), e.g. 64M")),
    };
    let count: u64 = digits.parse().map_err(|_| "expected a whole number and a unit, e.g. 64M".to_owned())?;
    let bytes = count.checked_mul(1 << shift).ok_or("more bytes than 64 bits can count")?;
    if bytes == 0 {
        return Err("a guest needs some memory, e.g. 64M".to_owned());
    }
    if bytes % 4096 != 0 {
        return Err(format!("{bytes} bytes are not a whole number of 4 KiB pages"));
    }
    Ok(bytes)
}

/// A duration from `10s`, `500ms`, `2m`, `1.5s`; a bare number is seconds, as for `timeout`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = split(text);
    let scale = match unit {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit `{unit}`: use ms, s, m or h, e.g. 10s")),
    };
    let count: f64 = digits.parse().map_err(|_| "expected a number and a unit, e.g. 10s".to_owned())?;
    match Duration::try_from_secs_f64(count * scale) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("a timeout must be longer than nothing".to_owned()),
        Err(_) => Err("longer than this program can count".to_owned()),
    }
}

/// Nanoseconds of system time from `1.5ms`, `200us`, `2s`; a bare number is seconds, as a timeline shows them.
pub(super) fn moment(text: &str) -> Result<u64, String> {
    let (digits, unit) = split(text);
    let scale = match unit {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "" | "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return Err(format!("unknown unit `{unit}`: use ns, us, ms, s, m or h, e.g. 1.5ms")),
    };
    let count: f64 = digits.parse().map_err(|_| "expected a number and a unit, e.g. 1.5ms".to_owned())?;
    // Saturates: later than any run ends.
    Ok((count * scale).round() as u64)
}

/// Microseconds, a million at most.
pub(super) fn microseconds(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|us| *us <= 1_000_000);
    count.ok_or_else(|| "expected a whole number of microseconds, 0 to 1000000".to_owned())
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    (digits, unit.trim_start())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn moments_that_people_type() {
        let cases = [
            ("1.5ms", 1_500_000),
            ("0.000012345", 12_345),
            ("7 us", 7_000),
            ("3ns", 3),
            ("1m", 60_000_000_000),
        ];
        for (text, ns) in cases {
            assert_eq!(moment(text), Ok(ns), "{text}");
        }
        assert_eq!(moment("99999999999999h"), Ok(u64::MAX));
        for text in ["", "ms", "1.2.3s", "1 week"] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_that_people_type() {
        let cases = [("64M", 64 << 20), ("64", 64 << 20), ("1g", 1 << 30), ("2 GiB", 2 << 30), ("8k", 8192)];
        for (text, bytes) in cases {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_make_no_sense() {
        for text in ["", "M", "0", "-1", "1.5G", "3K", "64X", "64MM", "99999999999T", "٣M"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn microseconds_are_plain_numbers() {
        assert_eq!((microseconds("0"), microseconds("1000000")), (Ok(0), Ok(1_000_000)));
        for text in ["", "200us", "-1", "1000001", "0.5"] {
            assert!(microseconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "s", "0", "0.0s", "-1", "5d", "1..5", "9e9", "99999999999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,12}") {
            if let Ok(bytes) = memory(&text) {
                prop_assert!(bytes > 0 && bytes % 4096 == 0);
            }
            let _ = duration(&text);
        }
    }
}
