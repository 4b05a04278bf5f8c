//! HMAC with SHA-2, by aws-lc.

use aws_lc_rs::hmac;

use super::Sha2;

/// An HMAC key.
pub struct MacKey(hmac::Key);

impl std::fmt::Debug for MacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MacKey(..)")
    }
}

impl MacKey {
    pub(super) fn new(hash: Sha2, bytes: &[u8]) -> Self {
        let algorithm = match hash {
            Sha2::Sha224 => hmac::HMAC_SHA224,
            Sha2::Sha256 => hmac::HMAC_SHA256,
            Sha2::Sha384 => hmac::HMAC_SHA384,
            Sha2::Sha512 => hmac::HMAC_SHA512,
        };
        Self(hmac::Key::new(algorithm, bytes))
    }

    /// The MAC of `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        hmac::sign(&self.0, message).as_ref().to_vec()
    }

    /// Whether `mac` is the whole MAC of `message`; in constant time.
    pub fn verify(&self, message: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.0, message, mac).is_ok()
    }
}

/// Lengths that may be imported: from the digest's to the hash's block, as the service documents them.
pub fn fits(hash: Sha2, len: usize) -> bool {
    let block = match hash {
        Sha2::Sha224 | Sha2::Sha256 => 64,
        Sha2::Sha384 | Sha2::Sha512 => 128,
    };
    (hash.digest_len()..=block).contains(&len)
}
