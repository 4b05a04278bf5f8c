//! JSON in which no object names a member twice: of two, readers disagree about which one counts.
//!
//! Called to read policy documents.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// How the error of a doubled member begins.
const DOUBLED: &str = "duplicate member ";

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JsonError {
    /// It is not JSON.
    Malformed,
    /// An object has this member twice.
    Doubled(String),
}

/// Reads `text`.
pub(super) fn read(text: &str) -> Result<Value, JsonError> {
    serde_json::from_str::<Strict>(text).map(|strict| strict.0).map_err(|error| {
        let words = error.to_string();
        let name = words.strip_prefix(DOUBLED).map(|rest| rest.split(" at line ").next().unwrap_or(rest));
        name.map_or(JsonError::Malformed, |name| JsonError::Doubled(name.to_owned()))
    })
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Strict(value)) = list.next_element()? {
            out.push(value);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if out.contains_key(&name) {
                return Err(A::Error::custom(format_args!("{DOUBLED}{name}")));
            }
            let Strict(value) = members.next_value()?;
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_as_it_stands() {
        let text = r#"{"a":[1,-2,2.5,"x",true,null,{}],"b":{"a":{"c":1}}}"#;
        assert_eq!(read(text), Ok(serde_json::from_str(text).unwrap()));
        for wrong in ["", "{", "{} {}", "{'a':1}"] {
            assert_eq!(read(wrong), Err(JsonError::Malformed), "{wrong}");
        }
        assert_eq!(read(&"[".repeat(30_000)), Err(JsonError::Malformed), "the depth is bounded");
    }

    #[test]
    fn a_member_that_comes_twice_is_refused_at_any_depth_and_spelling() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"x":2,"a":3}}]"#, r#"{"a":1,"\u0061":2}"#] {
            assert_eq!(read(text), Err(JsonError::Doubled("a".to_owned())), "{text}");
        }
    }
}
