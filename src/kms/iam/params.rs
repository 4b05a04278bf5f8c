//! The parameters of a call to IAM or STS: a form, `Action=CreateUser&UserName=alice&Tags.member.1.Key=team`.
//!
//! Parsed by `call` from bytes that callers choose; read by the operations.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::api::Tag;

use super::error::IamError;

/// Most parameters of a call.
const MAX_PARAMETERS: usize = 1000;
/// Most tags of anything.
const MAX_TAGS: usize = 50;

/// Parameters by name.
#[derive(Debug, Default)]
pub struct Params(BTreeMap<String, String>);

impl Params {
    /// Reads a form.
    pub fn parse(body: &[u8]) -> Result<Self, IamError> {
        let bad = || IamError::malformed("The request is no form of UTF-8 text.");
        let text = std::str::from_utf8(body).map_err(|_| bad())?;
        let mut found = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name).ok_or_else(bad)?, decode(value).ok_or_else(bad)?);
            if found.insert(name, value).is_some() || found.len() > MAX_PARAMETERS {
                return Err(IamError::malformed("A parameter comes twice, or there are too many."));
            }
        }
        Ok(Self(found))
    }

    /// From pairs, for calls of the daemon itself.
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// A parameter, if it is there.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A parameter that must be there.
    pub fn need(&self, name: &str) -> Result<&str, IamError> {
        self.get(name).ok_or_else(|| {
            let (first, rest) = name.split_at(1);
            IamError::validation(format!(
                "1 validation error detected: Value null at '{}{rest}' failed to satisfy constraint: Member must \
                 not be null",
                first.to_ascii_lowercase()
            ))
        })
    }

    /// A number within bounds.
    pub fn number(&self, name: &str, min: u32, max: u32) -> Result<Option<u32>, IamError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = text.parse::<u32>().ok().filter(|number| (min..=max).contains(number));
        let (first, rest) = name.split_at(1);
        number.map(Some).ok_or_else(|| {
            IamError::validation(format!(
                "1 validation error detected: Value '{text}' at '{}{rest}' failed to satisfy constraint: Member \
                 must have value between {min} and {max}",
                first.to_ascii_lowercase()
            ))
        })
    }

    /// The texts of a list: `NAME.member.1`, or `NAME.member.1.FIELD`.
    pub fn list(&self, name: &str, field: &str) -> Vec<&str> {
        let mut out = Vec::new();
        for number in 1.. {
            let key = match field {
                "" => format!("{name}.member.{number}"),
                field => format!("{name}.member.{number}.{field}"),
            };
            match self.get(&key) {
                Some(text) => out.push(text),
                None => break,
            }
        }
        out
    }

    /// The tags of a list.
    pub fn tags(&self, name: &str) -> Result<Vec<Tag>, IamError> {
        let keys = self.list(name, "Key");
        if keys.len() > MAX_TAGS {
            return Err(IamError::invalid(format!("There are more than {MAX_TAGS} tags.")));
        }
        let mut tags: Vec<Tag> = Vec::with_capacity(keys.len());
        for (at, key) in keys.into_iter().enumerate() {
            let value = self.get(&format!("{name}.member.{}.Value", at + 1)).unwrap_or_default();
            let fits = (1..=128).contains(&key.chars().count()) && value.chars().count() <= 256;
            if !fits || key.to_ascii_lowercase().starts_with("aws:") {
                return Err(IamError::invalid(format!("The tag {key} is not allowed.")));
            }
            if tags.iter().any(|tag| tag.tag_key.eq_ignore_ascii_case(key)) {
                return Err(IamError::invalid(
                    "Duplicate tag keys found. Please note that Tag keys are case insensitive.",
                ));
            }
            tags.push(Tag { tag_key: key.to_owned(), tag_value: value.to_owned() });
        }
        Ok(tags)
    }

    /// What the audit record shows: everything but secrets.
    pub fn shown(&self) -> String {
        let shown = self
            .0
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "Action" | "Version" | "SecretAccessKey"));
        let map: serde_json::Map<String, serde_json::Value> = shown
            .map(|(name, value)| {
                let (first, rest) = name.split_at(name.chars().next().map_or(0, char::len_utf8));
                (format!("{}{rest}", first.to_ascii_lowercase()), value.clone().into())
            })
            .collect();
        serde_json::Value::Object(map).to_string()
    }
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                u8::try_from(digit(bytes.next()?)? * 16 + digit(bytes.next()?)?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

/// Writes a form.
pub fn encode(pairs: &[(String, String)]) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push('&');
        }
        for (at, text) in [name, value].into_iter().enumerate() {
            out.push_str(if at == 0 { "" } else { "=" });
            for byte in text.bytes() {
                if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                    out.push(char::from(byte));
                } else {
                    let _ = write!(out, "%{byte:02X}");
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_it_was_written() {
        let pairs = [("Action".to_owned(), "X".to_owned()), ("a b".to_owned(), "ü&=+%".to_owned())];
        let params = Params::parse(encode(&pairs).as_bytes()).unwrap();
        assert_eq!((params.get("Action"), params.get("a b")), (Some("X"), Some("ü&=+%")));
        assert_eq!(Params::parse(b"a+b=%41").unwrap().get("a b"), Some("A"));
        for wrong in [&b"a=%4"[..], b"a=%zz", b"a=1&a=2", b"\xff=1", b"a=%ff"] {
            assert!(Params::parse(wrong).is_err());
        }
    }

    #[test]
    fn lists_and_tags_are_numbered_from_one() {
        let params = Params::of(&[
            ("TagKeys.member.1", "a"),
            ("TagKeys.member.2", "b"),
            ("TagKeys.member.4", "d"),
            ("Tags.member.1.Key", "team"),
            ("Tags.member.1.Value", "x"),
            ("Bad.member.1.Key", "aws:x"),
            ("Twice.member.1.Key", "x"),
            ("Twice.member.2.Key", "X"),
        ]);
        assert_eq!(params.list("TagKeys", ""), ["a", "b"]);
        assert_eq!(params.tags("Tags").unwrap(), [Tag { tag_key: "team".into(), tag_value: "x".into() }]);
        assert!(params.tags("Bad").is_err() && params.tags("Twice").is_err());
        assert!(params.need("UserName").unwrap_err().message.contains("'userName'"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let params =
            Params::of(&[("Action", "CreateAccessKey"), ("SecretAccessKey", "s3"), ("UserName", "a")]);
        assert_eq!(params.shown(), r#"{"userName":"a"}"#);
    }
}
