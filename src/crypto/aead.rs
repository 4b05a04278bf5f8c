//! AES-256-GCM-SIV (RFC 8452), by aws-lc-rs. `tests` hold it against RustCrypto's `aes-gcm-siv`.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce as LcNonce, UnboundKey};

/// Bytes of a nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of a tag.
pub const TAG_LEN: usize = 16;
/// A nonce.
pub type Nonce = [u8; NONCE_LEN];
/// An authentication tag.
pub type Tag = [u8; TAG_LEN];

/// The tag did not verify; nothing of the plaintext was released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenError;

/// A prepared AES-256-GCM-SIV key. Building one costs a key schedule; keep it as long as the key.
pub struct Aead(LessSafeKey);

impl Aead {
    /// Prepares `key`.
    pub fn new(key: &[u8; 32]) -> Self {
        let unbound = UnboundKey::new(&AES_256_GCM_SIV, key).expect("a 32-byte key fits AES-256");
        Self(LessSafeKey::new(unbound))
    }

    /// Encrypts `data` in place and returns the tag over it and `aad`.
    pub fn seal(&self, nonce: &Nonce, aad: &[u8], data: &mut [u8]) -> Tag {
        let nonce = LcNonce::assume_unique_for_key(*nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), data);
        let tag = tag.expect("data and additional data are far below 2^36 bytes");
        let mut out = [0; TAG_LEN];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Decrypts `source` into `out` (of the same length) after checking `tag`; on a mismatch `out` is wiped.
    pub fn open(
        &self,
        nonce: &Nonce,
        aad: &[u8],
        source: &[u8],
        tag: &Tag,
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        let nonce = LcNonce::assume_unique_for_key(*nonce);
        self.0.open_separate_gather(nonce, Aad::from(aad), source, tag, out).map_err(|_| {
            out.fill(0);
            OpenError
        })
    }

    /// A deterministic MAC and PRF: the tag of an empty message. GCM-SIV keeps its strength when a nonce repeats.
    pub fn mac(&self, nonce: &Nonce, data: &[u8]) -> Tag {
        self.seal(nonce, data, &mut [])
    }
}

impl std::fmt::Debug for Aead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Aead(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes_gcm_siv::aead::AeadInOut;
    use aes_gcm_siv::{Aes256GcmSiv, KeyInit};
    use proptest::prelude::*;

    proptest! {
        /// Two independent implementations of RFC 8452 must give the same bytes.
        #[test]
        fn both_implementations_agree(
            key: [u8; 32], nonce: [u8; 12], aad in proptest::collection::vec(any::<u8>(), 0..40),
            plain in proptest::collection::vec(any::<u8>(), 0..5000),
        ) {
            let mut ours = plain.clone();
            let tag = Aead::new(&key).seal(&nonce, &aad, &mut ours);
            let mut theirs = plain.clone();
            let other = Aes256GcmSiv::new(&key.into());
            let their_tag = other.encrypt_inout_detached(&nonce.into(), &aad, theirs.as_mut_slice().into()).unwrap();
            prop_assert_eq!(&ours, &theirs);
            prop_assert_eq!(&tag[..], &their_tag[..]);
            let mut back = vec![0; plain.len()];
            Aead::new(&key).open(&nonce, &aad, &theirs, &tag, &mut back).unwrap();
            prop_assert_eq!(back, plain);
        }

        #[test]
        fn a_flipped_bit_opens_nothing(bit in 0_usize..(100 + 16) * 8) {
            let key = Aead::new(&[3; 32]);
            let mut data = [5; 100];
            let mut tag = key.seal(&[1; 12], b"aad", &mut data);
            if bit < 800 { data[bit / 8] ^= 1 << (bit % 8) } else { tag[(bit - 800) / 8] ^= 1 << (bit % 8) }
            let mut out = [9; 100];
            prop_assert_eq!(key.open(&[1; 12], b"aad", &data, &tag, &mut out), Err(OpenError));
            prop_assert_eq!(out, [0; 100]);
        }
    }
}
