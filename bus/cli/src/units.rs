//! Sizes and durations, as people write them.

use std::time::Duration;

/// Bytes: `65536`, `64KiB`, `1MiB`, `2GiB`, and `1KB`, `1MB`, `1GB` in thousands; `64K` and `64M` are KiB and MiB.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err("a size is a number with B, KiB, MiB or GiB, as in 64MiB".into()),
    };
    let number: u64 =
        number.parse().map_err(|_| "a size is a whole number with B, KiB, MiB or GiB, as in 64MiB")?;
    number.checked_mul(factor).ok_or_else(|| "a size is under 16 EiB".into())
}

/// A duration: `500ms`, `1s`, `2m`, `1h`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a duration is a number with ms, s, m or h, as in 500ms".into()),
    };
    let number: u64 =
        number.parse().map_err(|_| "a duration is a whole number with ms, s, m or h, as in 500ms")?;
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| "too long".into())
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// Bytes for people: `64 MiB`, `1.5 GiB`.
pub(crate) fn show_size(bytes: u64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount < 1024.0 {
            return if amount.fract() == 0.0 {
                format!("{amount} {unit}")
            } else {
                format!("{amount:.1} {unit}")
            };
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} TiB")
}

/// Whole numbers for people: `27,004`.
pub(crate) fn show_count(count: u64) -> String {
    let digits = count.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("100", 100),
            ("1KiB", 1024),
            ("64MiB", 64 << 20),
            ("1GB", 1_000_000_000),
            ("4k", 4096),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "MiB", "1.5MiB", "-1", "1XB", "99999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        for wrong in ["", "s", "1 day", "-1s", "1.5s", "99999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shown_for_people() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(64 << 20), "64 MiB");
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_count(27_004), "27,004");
        assert_eq!(show_count(1_000_000), "1,000,000");
        assert_eq!(show_count(7), "7");
    }
}
