//! `--from`.

use bus_client::From;

use crate::rfc3339;

/// `start`, `end`, an offset, or a time. A plain number is an offset; `@MS` and RFC 3339 are times.
pub(super) fn parse(text: &str) -> Result<From, String> {
    let wrong =
        || "use start, end, an offset, a time such as 2013-01-01T10:00:00Z, or @ and milliseconds since 1970";
    match text {
        "start" => return Ok(From::Start),
        "end" => return Ok(From::End),
        _ => {}
    }
    if let Some(milliseconds) = text.strip_prefix('@') {
        return milliseconds.parse().map(From::Timestamp).map_err(|_| wrong().to_owned());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        return text
            .parse()
            .map(From::Offset)
            .map_err(|_| "an offset is under 9223372036854775808".to_owned());
    }
    rfc3339::parse(text).map(From::Timestamp).ok_or_else(|| wrong().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions() {
        assert_eq!(parse("start"), Ok(From::Start));
        assert_eq!(parse("end"), Ok(From::End));
        assert_eq!(parse("0"), Ok(From::Offset(0)));
        assert_eq!(parse("1357034400000"), Ok(From::Offset(1_357_034_400_000)));
        assert_eq!(parse("@1357034400000"), Ok(From::Timestamp(1_357_034_400_000)));
        assert_eq!(parse("2013-01-01T10:00:00Z"), Ok(From::Timestamp(1_357_034_400_000)));
        for wrong in ["", "-1", "first", "@now", "1.5", "99999999999999999999"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
