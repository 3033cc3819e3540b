//! Timestamps as people write and read them: RFC 3339, to the millisecond.

use bus_protocol::Timestamp;

/// Milliseconds since the Unix epoch of `2013-01-01T10:00:00Z`, `2013-01-01 10:00:00.250+02:00` or `2013-01-01`
/// (midnight, UTC). `None` where it is no such thing. Seconds of 60 (leap seconds) are not taken.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let byte = |at: usize| text.as_bytes().get(at).copied();
    if byte(4)? != b'-' || byte(7)? != b'-' {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return None;
    }
    let midnight = days_since_epoch(year, month, day) * 86_400_000;
    if text.len() == 10 {
        return Some(midnight);
    }
    if !matches!(byte(10)?, b'T' | b't' | b' ') || byte(13)? != b':' || byte(16)? != b':' {
        return None;
    }
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut milliseconds = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        milliseconds = format!("{:0<3}", &fraction[..digits.min(3)]).parse().ok()?;
        rest = &fraction[digits..];
    }
    let offset_minutes = match rest {
        "Z" | "z" => 0,
        zone if zone.len() == 6 && zone.is_ascii() && &zone[3..4] == ":" => {
            let hours: i64 = zone[1..3].parse().ok().filter(|h| (0..24).contains(h))?;
            let minutes: i64 = zone[4..6].parse().ok().filter(|m| (0..60).contains(m))?;
            match &zone[..1] {
                "+" => hours * 60 + minutes,
                "-" => -(hours * 60 + minutes),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(midnight + ((hour * 60 + minute - offset_minutes) * 60 + second) * 1_000 + milliseconds)
}

/// `2013-01-01T10:00:00.000Z`.
pub(crate) fn show(timestamp: Timestamp) -> String {
    let (days, in_day) = (timestamp.div_euclid(86_400_000), timestamp.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    let (seconds, milliseconds) = (in_day / 1_000, in_day % 1_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar, counted in eras of 400 years that begin on March 1st, so that the
/// leap day is an era's last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_since_epoch`].
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (text, milliseconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01", 0),
            ("2013-01-01T10:00:00Z", 1_357_034_400_000),
            ("2013-01-01T12:00:00+02:00", 1_357_034_400_000),
            ("2013-01-01 05:00:00.250-05:00", 1_357_034_400_250),
            ("2000-02-29T23:59:59.9Z", 951_868_799_900),
            ("1969-12-31T23:59:59Z", -1_000),
        ] {
            assert_eq!(parse(text), Some(milliseconds), "{text}");
        }
        for wrong in [
            "",
            "yesterday",
            "2013-13-01",
            "2013-02-29",
            "2013-01-01T",
            "2013-01-01T10:00:00",
            "2013-01-01T25:00:00Z",
            "2013-01-01T10:00:00.Z",
            "2013-01-01T10:00:00+2:00",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn shown_and_parsed_again() {
        for day in (-800_000..800_000).step_by(37) {
            let timestamp = day * 86_400_000 + 12_345_678;
            let text = show(timestamp);
            if text.len() == 24 && !text.starts_with('-') {
                assert_eq!(parse(&text), Some(timestamp), "{text}");
            }
        }
    }
}
