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

/// Bytes a second that a bare number may stand for: one below is rather a number of MiB.
const LEAST_BARE_RATE: u64 = 1 << 20;

/// Bytes a second: a [`size`], with `/s` behind it or not; 0 for no limit.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let amount = text.strip_suffix("/s").unwrap_or(text).trim_end();
    let rate =
        size(amount).map_err(|_| "a rate is a whole number with KiB, MiB or GiB, as in 50MiB or 50MiB/s")?;
    if amount.parse::<u64>().is_ok() && (1..LEAST_BARE_RATE).contains(&rate) {
        return Err(format!(
            "{amount} is {amount} bytes a second: write {amount}MiB, or {amount}B if it is meant so"
        ));
    }
    Ok(rate)
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

/// Bytes a second for people: `50 MiB/s`.
pub(crate) fn show_rate(rate: u64) -> String {
    format!("{}/s", show_size(rate))
}

/// A time for people, in its largest whole unit: `12 s`, `3 m`.
pub(crate) fn show_duration(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} m", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
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
    fn rates() {
        for (text, bytes) in [("0", 0), ("50MiB", 50 << 20), ("50MiB/s", 50 << 20), ("5 MB /s", 5_000_000)] {
            assert_eq!(rate(text), Ok(bytes), "{text}");
        }
        assert_eq!((rate("50B"), rate("2000000")), (Ok(50), Ok(2_000_000)));
        assert!(rate("50").unwrap_err().contains("write 50MiB"));
        assert!(rate("50/s").is_err() && rate("50MiB/m").is_err() && rate("").is_err());
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
        let times = [740, 12_400, 119_000, 180_000, 7_200_000].map(Duration::from_millis).map(show_duration);
        assert_eq!(times, ["740 ms", "12 s", "119 s", "3 m", "2 h"]);
        assert_eq!(show_count(27_004), "27,004");
        assert_eq!(show_count(1_000_000), "1,000,000");
        assert_eq!(show_count(7), "7");
    }
}
