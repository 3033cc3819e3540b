//! `KEY=VALUE` arguments.

use std::collections::BTreeMap;

use crate::failure::usage;

/// Splits at the first `=`; the value may be empty and may hold further ones.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".into()),
    }
}

/// The pairs by key; the same key twice is a slip worth a word.
pub(crate) fn map(flag: &str, pairs: Vec<(String, String)>) -> anyhow::Result<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value).is_some() {
            return Err(usage(format!("{flag} {key}=... is given twice: which one is meant?")));
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_split_at_the_first_equals_sign() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("=b").is_err());
        assert!(pair("ab").is_err());
        assert!(map("--config", vec![pair("a=1").unwrap(), pair("a=2").unwrap()]).is_err());
    }
}
