//! Wrapping keys: RSA key pairs under whose public half a customer sends key material.
//!
//! Called by `kms` when key material is imported. The private half leaves this module only to be sealed.

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded};
use zeroize::Zeroizing;

use super::rsa::{OaepHash, RsaBits, RsaDecrypter};
use super::{MaterialError, rsa};

/// Bytes of the AES key of the two-step algorithms.
const KEK_LEN: usize = 32;
/// AES key wrap works on blocks of eight bytes, and its output is two of them at least (RFC 5649).
const WRAP_BLOCK: usize = 8;

/// How key material is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapping {
    /// RSAES-OAEP (RFC 8017) over the material.
    Oaep(OaepHash),
    /// RSAES-OAEP over a 256-bit AES key, followed by the material under AES key wrap with padding (RFC 5649).
    AesKeyWrap(OaepHash),
}

/// Why material did not unwrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnwrapError {
    /// It cannot be of that wrapping key and algorithm: its length is wrong.
    Length,
    /// It was wrapped for another key, with another algorithm, or changed.
    NotAuthentic,
}

/// A wrapping key pair.
#[derive(Debug)]
pub struct WrappingKey {
    pair: RsaDecrypter,
    bits: RsaBits,
}

impl WrappingKey {
    /// The private half, PKCS#8, of a fresh pair. Takes its time: seconds for 4096 bits.
    pub fn generate(bits: RsaBits) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        rsa::generate(bits)
    }

    /// From the private half.
    pub fn open(bits: RsaBits, pkcs8: &[u8]) -> Result<Self, MaterialError> {
        Ok(Self { pair: RsaDecrypter::open(pkcs8)?, bits })
    }

    /// The public half: SubjectPublicKeyInfo in DER.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key()
    }

    /// Unwraps key material.
    pub fn unwrap(&self, wrapping: Wrapping, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        let (head, body) = wrapped.split_at_checked(self.bits.modulus_len()).ok_or(UnwrapError::Length)?;
        match wrapping {
            Wrapping::Oaep(hash) if body.is_empty() => self.decrypt(hash, head),
            Wrapping::AesKeyWrap(hash) if body.len() >= 2 * WRAP_BLOCK && body.len() % WRAP_BLOCK == 0 => {
                let kek = self.decrypt(hash, head)?;
                unwrap_padded(&kek, body)
            }
            Wrapping::Oaep(_) | Wrapping::AesKeyWrap(_) => Err(UnwrapError::Length),
        }
    }

    fn decrypt(&self, hash: OaepHash, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        self.pair.decrypt(hash, wrapped).map_err(|_| UnwrapError::NotAuthentic)
    }
}

fn unwrap_padded(kek: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
    if kek.len() != KEK_LEN {
        return Err(UnwrapError::NotAuthentic);
    }
    let kek = AesKek::new(&AES_256, kek).map_err(|_| UnwrapError::NotAuthentic)?;
    let mut out = Zeroizing::new(vec![0; wrapped.len()]);
    let len = kek.unwrap_with_padding(wrapped, &mut out).map_err(|_| UnwrapError::NotAuthentic)?.len();
    out.truncate(len);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> WrappingKey {
        WrappingKey::open(RsaBits::B2048, &WrappingKey::generate(RsaBits::B2048).unwrap()).unwrap()
    }

    fn wrapped(key: &WrappingKey, hash: OaepHash, kek: &[u8], material: &[u8]) -> Vec<u8> {
        let mut out = key.pair.encrypt(hash, kek).unwrap();
        let mut body = vec![0; material.len().next_multiple_of(8) + 8];
        let kek: [u8; 32] = kek.try_into().unwrap();
        let kek = AesKek::new(&AES_256, &kek).unwrap();
        out.extend_from_slice(kek.wrap_with_padding(material, &mut body).unwrap());
        out
    }

    #[test]
    fn material_unwraps_under_its_own_key_and_algorithm_only() {
        let (key, other) = (pair(), pair());
        let (one, two) = (OaepHash::Sha1, OaepHash::Sha256);
        let direct = key.pair.encrypt(two, b"material").unwrap();
        assert_eq!(key.unwrap(Wrapping::Oaep(two), &direct).unwrap().as_slice(), b"material");
        assert_eq!(key.unwrap(Wrapping::Oaep(one), &direct), Err(UnwrapError::NotAuthentic));
        assert_eq!(other.unwrap(Wrapping::Oaep(two), &direct), Err(UnwrapError::NotAuthentic));
        assert_eq!(key.unwrap(Wrapping::AesKeyWrap(two), &direct), Err(UnwrapError::Length));
        assert_eq!(key.unwrap(Wrapping::Oaep(two), &direct[1..]), Err(UnwrapError::Length));
        let twofold = wrapped(&key, one, &[7; 32], &[9; 1217]);
        assert_eq!(key.unwrap(Wrapping::AesKeyWrap(one), &twofold).unwrap().as_slice(), [9; 1217]);
        assert_eq!(key.unwrap(Wrapping::Oaep(one), &twofold), Err(UnwrapError::Length));
        let mut changed = twofold.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(key.unwrap(Wrapping::AesKeyWrap(one), &changed), Err(UnwrapError::NotAuthentic));
        assert_eq!(key.unwrap(Wrapping::AesKeyWrap(one), &twofold[..260]), Err(UnwrapError::Length));
    }
}
