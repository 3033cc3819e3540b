//! Finds a field of a JSON object's top level in its text, without building a tree of it: a few hundred bytes of
//! code where a JSON library takes tens of kilobytes. It trusts that the text is JSON, and finds nothing where it
//! is not.

use std::ops::Range;

/// Where the value of the field `name` lies in `text`, quotes included; `None` where there is no such field.
pub fn find(text: &[u8], name: &str) -> Option<Range<usize>> {
    let mut at = skip_space(text, 0);
    if text.get(at) != Some(&b'{') {
        return None;
    }
    at += 1;
    loop {
        let key = skip_space(text, at);
        let colon = skip_space(text, end_of_value(text, key)?);
        if text.get(colon) != Some(&b':') {
            return None;
        }
        let start = skip_space(text, colon + 1);
        let end = end_of_value(text, start)?;
        let is_it = text.get(key..key + name.len() + 2).is_some_and(|quoted| {
            quoted.first() == Some(&b'"')
                && quoted.last() == Some(&b'"')
                && &quoted[1..=name.len()] == name.as_bytes()
        });
        if is_it {
            return Some(start..end);
        }
        at = skip_space(text, end);
        if text.get(at) != Some(&b',') {
            return None;
        }
        at += 1;
    }
}

/// The text of a field's value; `None` where it is missing or null.
pub fn value<'a>(text: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let value = &text[find(text, name)?];
    (value != b"null").then_some(value)
}

/// A field's value as a number.
pub fn number(text: &[u8], name: &str) -> Option<f64> {
    std::str::from_utf8(value(text, name)?).ok()?.parse().ok()
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// Behind the value that starts at `start`: a string, an object, an array, or a word.
fn end_of_value(text: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut depth) = (start, 0usize);
    loop {
        match text.get(at)? {
            b'"' => {
                at += 1;
                while *text.get(at)? != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return (at > start).then_some(at),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' if depth == 0 => return (at > start).then_some(at),
            _ => {}
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_top_level_fields_only() {
        let text = br#"{"a": {"b": 1, "s": "}"}, "s":"x\"y", "n":null , "b":-2.5,"l":[1,[2]]}"#;
        assert_eq!(value(text, "a"), Some(&br#"{"b": 1, "s": "}"}"#[..]));
        assert_eq!(value(text, "s"), Some(&br#""x\"y""#[..]));
        assert_eq!(number(text, "b"), Some(-2.5));
        assert_eq!(value(text, "l"), Some(&b"[1,[2]]"[..]));
        assert!(find(text, "n").is_some() && value(text, "n").is_none());
        assert_eq!(find(text, "missing"), None);
    }

    #[test]
    fn what_is_not_an_object_has_no_fields() {
        for text in ["", "[]", "{", "{}", "{\"a\"", "{\"a\":", "{\"a\":\"", "a,b,c", "null", "{\"a\\"] {
            assert_eq!(find(text.as_bytes(), "a"), None, "{text}");
        }
    }
}
