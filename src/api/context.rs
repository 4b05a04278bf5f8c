//! The encryption context: public pairs that a ciphertext is bound to.

use std::collections::BTreeMap;
use std::collections::btree_map::{self, Entry};
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Pairs of key and value, ordered by the bytes of the key. A missing context and an empty one are the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EncryptionContext(BTreeMap<String, String>);

impl EncryptionContext {
    /// No pairs.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds or replaces a pair.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.0.insert(key.into(), value.into());
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The pairs, ordered by key.
    pub fn iter(&self) -> btree_map::Iter<'_, String, String> {
        self.0.iter()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all keys and values together.
    pub fn text_len(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    /// The one encoding that is bound as additional data: `(u32 LE length || bytes)` of each key and value in turn,
    /// sorted by key bytes. Length prefixes make it injective: no two contexts share an encoding.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.text_len() + 8 * self.0.len());
        for text in self.0.iter().flat_map(|(key, value)| [key, value]) {
            out.extend_from_slice(&(text.len() as u32).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out
    }
}

impl<'de> Deserialize<'de> for EncryptionContext {
    /// Refuses a key that stands twice: the record and the policy must see the pairs that are bound, and no others.
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_map(Pairs)
    }
}

struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = EncryptionContext;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EncryptionContext, A::Error> {
        let mut pairs = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            match pairs.entry(key) {
                Entry::Vacant(place) => drop(place.insert(value)),
                Entry::Occupied(_) => return Err(A::Error::custom("a key stands twice")),
            }
        }
        Ok(EncryptionContext(pairs))
    }
}

impl<'a> IntoIterator for &'a EncryptionContext {
    type Item = (&'a String, &'a String);
    type IntoIter = btree_map::Iter<'a, String, String>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for EncryptionContext {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_encoding_is_sorted_and_length_prefixed() {
        let context: EncryptionContext = [("b", "2"), ("a", "")].into_iter().collect();
        assert_eq!(context.canonical(), b"\x01\0\0\0a\0\0\0\0\x01\0\0\0b\x01\0\0\x002");
        assert!(EncryptionContext::new().canonical().is_empty());
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        let parse = serde_json::from_str::<EncryptionContext>;
        assert_eq!(parse(r#"{"a":"1","b":"2"}"#).unwrap().text_len(), 4);
        assert!(parse(r#"{"a":"1","a":"2"}"#).is_err());
        assert!(parse(r#"{"a":"1","\u0061":"1"}"#).is_err());
    }

    proptest! {
        #[test]
        fn different_contexts_have_different_encodings(
            a in prop::collection::btree_map("[ab]{0,3}", "[ab]{0,3}", 0..4),
            b in prop::collection::btree_map("[ab]{0,3}", "[ab]{0,3}", 0..4),
        ) {
            let (left, right) = (EncryptionContext(a.clone()), EncryptionContext(b.clone()));
            prop_assert_eq!(a == b, left.canonical() == right.canonical());
        }
    }
}
