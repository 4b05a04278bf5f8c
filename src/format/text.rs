//! Bytes as file-name-safe text: base64url without padding (RFC 4648 section 5), decoded strictly.
//!
//! The decoder refuses padding, foreign characters and non-zero trailing bits, so each value has one spelling (A18).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Encodes `bytes`.
pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes the one canonical spelling; anything else is `None`.
pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Bytes that `encoded_len` characters decode to.
pub(super) const fn decoded_len(encoded_len: usize) -> usize {
    encoded_len * 3 / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_spelling_decodes() {
        assert_eq!(encode(&[0xff]), "_w");
        assert_eq!(decode(b"_w"), Some(vec![0xff]));
        for other in [&b"_x"[..], b"_w==", b"/w", b"_w ", b"_"] {
            assert_eq!(decode(other), None, "{other:?}");
        }
    }
}
