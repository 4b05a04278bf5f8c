//! How a key that its owner brings along is named where the ARN of a master key stands otherwise.
//!
//! ```text
//! customer-key/NAME/BASE64URL(salt 16 B)/BASE64URL(check 32 B)
//! ```
//! NAME has 1 to 32 letters, digits, `.`, `_` and `-`. The check is derived from key and salt ([`CustomerKey::check`]); it
//! tells whether a key is the one that is meant, and nothing else of it is kept anywhere.

use super::text;
use crate::crypto::{CustomerKey, constant_time_eq, random_array};

const PREFIX: &str = "customer-key/";
const NAME_MAX: usize = 32;
const SALT_LEN: usize = 16;

/// Whether `id` names such a key, as opposed to one of a key service.
pub fn is_customer(id: &str) -> bool {
    id.starts_with(PREFIX)
}

/// The name in `id`.
pub fn name_of(id: &str) -> Option<&str> {
    id.strip_prefix(PREFIX)?.split('/').next()
}

/// Whether a key may have this name.
pub fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain)
}

/// The id of `key` under `name`, with a fresh salt. The name is a valid one.
pub fn make_id(name: &str, key: &CustomerKey) -> String {
    let salt = random_array::<SALT_LEN>();
    format!("{PREFIX}{name}/{}/{}", text::encode(&salt), text::encode(&key.check(&salt)))
}

/// Whether `key` is the one that `id` names.
pub fn fits(id: &str, key: &CustomerKey) -> bool {
    let mut parts = id.strip_prefix(PREFIX).unwrap_or_default().splitn(3, '/').skip(1);
    let mut next = || parts.next().and_then(|part| text::decode(part.as_bytes()));
    match (next(), next()) {
        (Some(salt), Some(check)) => constant_time_eq(&key.check(&salt), &check),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_fits_its_key_and_no_other_and_says_its_name() {
        let (key, other) = (CustomerKey::take(&mut [1; 32]), CustomerKey::take(&mut [2; 32]));
        let id = make_id("backup-2026", &key);
        assert!(is_customer(&id) && name_of(&id) == Some("backup-2026"));
        assert!(fits(&id, &key) && !fits(&id, &other));
        assert_ne!(make_id("backup-2026", &key), id, "two salts");
        for wrong in ["", "customer-key/", "customer-key/a", "customer-key/a/b", "customer-key/a/AAAA/AAAA"] {
            assert!(!fits(wrong, &key), "{wrong}");
        }
        assert!(!is_customer("arn:aws:kms:local:000000000000:key/x"));
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!(is_name("a") && is_name(&"n".repeat(32)) && is_name("A.b_c-1"));
        for wrong in ["", "a/b", "a b", "ä", &"n".repeat(33)] {
            assert!(!is_name(wrong), "{wrong}");
        }
    }
}
