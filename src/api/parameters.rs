//! What of a request the audit record shows: a JSON object with names in lower camel case, and never a secret.

use std::fmt::Write;

use super::{Blob, EncryptionContext, SecretBlob, Timestamp};

/// A JSON object under construction.
#[derive(Debug, Clone)]
pub struct Parameters(String);

impl Default for Parameters {
    fn default() -> Self {
        Self::new()
    }
}

impl Parameters {
    /// No members yet.
    pub fn new() -> Self {
        let mut json = String::with_capacity(256);
        json.push('{');
        Self(json)
    }

    /// Adds `snake_name` in lower camel case, unless the value is withheld.
    pub fn add<T: Shown + ?Sized>(&mut self, snake_name: &str, value: &T) {
        let start = self.0.len();
        self.0.push_str(if start == 1 { "\"" } else { ",\"" });
        push_camel(&mut self.0, snake_name);
        self.0.push_str("\":");
        if !value.show(&mut self.0) {
            self.0.truncate(start);
        }
    }

    /// The finished JSON object.
    pub fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// `key_id` becomes `keyId`.
pub(super) fn push_camel(out: &mut String, snake: &str) {
    let mut raise = false;
    for c in snake.chars() {
        if c == '_' {
            raise = true;
        } else {
            out.push(if raise { c.to_ascii_uppercase() } else { c });
            raise = false;
        }
    }
}

/// `AccessKeyId` becomes `accessKeyId`.
pub fn lower_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(chars).collect()
}

/// Appends a JSON string.
pub(super) fn push_json(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    // Runs without anything to escape are copied whole.
    while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
        out.push_str(&rest[..at]);
        let byte = rest.as_bytes()[at];
        if byte < b' ' {
            let _ = write!(out, "\\u{byte:04x}");
        } else {
            out.push('\\');
            out.push(char::from(byte));
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out.push('"');
}

/// A value that an audit record may show.
pub trait Shown {
    /// Appends the value as JSON; false, and nothing that counts, where it is withheld.
    fn show(&self, out: &mut String) -> bool;
}

impl Shown for String {
    fn show(&self, out: &mut String) -> bool {
        push_json(out, self);
        true
    }
}

impl Shown for str {
    fn show(&self, out: &mut String) -> bool {
        push_json(out, self);
        true
    }
}

impl Shown for i64 {
    fn show(&self, out: &mut String) -> bool {
        let _ = write!(out, "{self}");
        true
    }
}

impl Shown for bool {
    fn show(&self, out: &mut String) -> bool {
        out.push_str(if *self { "true" } else { "false" });
        true
    }
}

impl Shown for Timestamp {
    fn show(&self, out: &mut String) -> bool {
        let _ = write!(out, "{}", self.seconds());
        true
    }
}

impl Shown for Blob {
    fn show(&self, _: &mut String) -> bool {
        false
    }
}

impl Shown for SecretBlob {
    fn show(&self, _: &mut String) -> bool {
        false
    }
}

impl Shown for EncryptionContext {
    fn show(&self, out: &mut String) -> bool {
        out.push('{');
        for (at, (key, value)) in self.iter().enumerate() {
            out.push_str(if at == 0 { "" } else { "," });
            push_json(out, key);
            out.push(':');
            push_json(out, value);
        }
        out.push('}');
        true
    }
}

impl<T: Shown> Shown for Vec<T> {
    fn show(&self, out: &mut String) -> bool {
        out.push('[');
        for (at, item) in self.iter().enumerate() {
            out.push_str(if at == 0 { "" } else { "," });
            if !item.show(out) {
                return false;
            }
        }
        out.push(']');
        true
    }
}

impl<T: super::shape::Choice> Shown for T {
    fn show(&self, out: &mut String) -> bool {
        push_json(out, self.text());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_withheld_and_texts_escaped() {
        let mut parameters = Parameters::new();
        parameters.add("plaintext", &SecretBlob::from(b"secret".to_vec()));
        parameters.add("key_id", "a\"\\\n");
        parameters.add("ciphertext_blob", &Blob(vec![1]));
        let context: EncryptionContext = [("k", "v")].into_iter().collect();
        parameters.add("encryption_context", &context);
        parameters.add("number_of_bytes", &5_i64);
        let json = parameters.finish();
        assert_eq!(json, r#"{"keyId":"a\"\\\u000a","encryptionContext":{"k":"v"},"numberOfBytes":5}"#);
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
        assert_eq!(Parameters::new().finish(), "{}");
    }
}
