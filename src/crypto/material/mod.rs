//! Key material of every kind a key can have: made, imported, kept as bytes, opened for use.
//!
//! Called by `kms` only. The canonical bytes ([`MaterialBytes`]) are what is sealed and what names the material;
//! [`Material`] is what they become in memory, parsed once and kept. Never prints or returns private bytes, but for
//! the data key pairs ([`DataKeyPair`]), which are made for the caller.
//!
//! ```text
//! kind          canonical bytes
//! symmetric     the 32 bytes
//! HMAC          the bytes
//! RSA           PKCS#8 v1 (RFC 5208), as aws-lc writes it
//! EC            the private scalar, big-endian, as long as the group's order
//! Ed25519       the seed, 32 bytes (RFC 8032)
//! ML-DSA        the seed xi, 32 bytes (FIPS 204)
//! ML-KEM        the seed d || z, 64 bytes (FIPS 203)
//! ```

mod der;
mod ec;
mod edwards;
mod mac;
mod ml_dsa;
mod ml_kem;
mod pair;
mod rsa;
mod signing;
#[cfg(test)]
mod tests;
mod wrap;

use zeroize::{Zeroize, Zeroizing};

use super::kms::{BackingKey, MATERIAL_LEN, material_id};

pub use ec::{Curve, EcAgreer, EcSigner};
pub use edwards::EdwardsSigner;
pub use mac::MacKey;
pub use ml_dsa::{MlDsaSet, MlDsaSigner};
pub use ml_kem::{MlKemKey, MlKemSet};
pub use pair::{DataKeyPair, DataKeyPairKind};
pub use rsa::{OaepHash, RsaBits, RsaDecrypter, RsaSigner};
pub use signing::{SignInput, SignScheme};
pub use wrap::{UnwrapError, Wrapping, WrappingKey};

/// A hash function of the SHA-2 family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sha2 {
    /// SHA-224; for HMAC only.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Sha2 {
    /// Bytes of a digest.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// What kind of material, and what it is for: the same bytes are parsed for one use only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaterialKind {
    /// AES, by way of one-use keys.
    Symmetric,
    /// HMAC with that hash.
    Mac(Sha2),
    /// RSA signatures.
    RsaSign(RsaBits),
    /// RSA encryption.
    RsaEncrypt(RsaBits),
    /// ECDSA.
    EcSign(Curve),
    /// ECDH.
    EcAgree(Curve),
    /// Ed25519 and Ed25519ph.
    Edwards,
    /// ML-DSA.
    MlDsa(MlDsaSet),
    /// ML-KEM.
    MlKem(MlKemSet),
}

/// Bytes are no material of the kind they should be, or the library failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaterialError;

impl std::fmt::Display for MaterialError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not key material of that kind")
    }
}

impl std::error::Error for MaterialError {}

impl From<aws_lc_rs::error::Unspecified> for MaterialError {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self
    }
}

impl From<aws_lc_rs::error::KeyRejected> for MaterialError {
    fn from(_: aws_lc_rs::error::KeyRejected) -> Self {
        Self
    }
}

/// The canonical bytes of key material. Wiped on drop; short-lived: made, sealed, dropped; or opened, parsed, dropped.
pub struct MaterialBytes(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for MaterialBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MaterialBytes(..)")
    }
}

impl MaterialBytes {
    /// Fresh material. RSA takes its time: a tenth of a second for 2048 bits, seconds for 4096.
    pub fn generate(kind: MaterialKind) -> Result<Self, MaterialError> {
        match kind {
            MaterialKind::Symmetric => Ok(Self::random(MATERIAL_LEN)),
            MaterialKind::Mac(hash) => Ok(Self::random(hash.digest_len())),
            MaterialKind::RsaSign(bits) | MaterialKind::RsaEncrypt(bits) => rsa::generate(bits).map(Self),
            MaterialKind::EcSign(curve) | MaterialKind::EcAgree(curve) => ec::generate(curve).map(Self),
            MaterialKind::Edwards => Ok(Self::random(edwards::SEED_LEN)),
            MaterialKind::MlDsa(_) => Ok(Self::random(ml_dsa::SEED_LEN)),
            MaterialKind::MlKem(_) => Ok(Self::random(ml_kem::SEED_LEN)),
        }
    }

    /// Material that a customer brings: raw bytes for symmetric and HMAC keys, PKCS#8 (RFC 5208) in DER for others.
    /// Checked for its kind and brought into canonical form, so that the same key encoded otherwise is the same.
    pub fn import(kind: MaterialKind, imported: &[u8]) -> Result<Self, MaterialError> {
        match kind {
            MaterialKind::Symmetric if imported.len() == MATERIAL_LEN => Ok(Self::copy_of(imported)),
            MaterialKind::Mac(hash) if mac::fits(hash, imported.len()) => Ok(Self::copy_of(imported)),
            MaterialKind::Symmetric | MaterialKind::Mac(_) => Err(MaterialError),
            MaterialKind::RsaSign(bits) | MaterialKind::RsaEncrypt(bits) => {
                rsa::import(bits, imported).map(Self)
            }
            MaterialKind::EcSign(curve) | MaterialKind::EcAgree(curve) => {
                ec::import(curve, imported).map(Self)
            }
            MaterialKind::Edwards => edwards::import(imported).map(Self),
            MaterialKind::MlDsa(set) => ml_dsa::import(set, imported).map(Self),
            MaterialKind::MlKem(set) => ml_kem::import(set, imported).map(Self),
        }
    }

    /// Takes over symmetric material and wipes the source.
    pub fn take(bytes: &mut [u8; MATERIAL_LEN]) -> Self {
        let taken = Self::copy_of(&*bytes);
        bytes.zeroize();
        taken
    }

    /// Takes over canonical bytes that were sealed before.
    pub fn of_sealed(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// The public name of this material under key `key_id`; HKDF-SHA-256 over the canonical bytes.
    /// The same material imported again has the same name; under another key it has another.
    pub fn id(&self, key_id: &[u8; 16]) -> [u8; 32] {
        material_id(&self.0, key_id)
    }

    /// The bytes, for sealing.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    fn copy_of(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    fn random(len: usize) -> Self {
        let mut bytes = Zeroizing::new(vec![0; len]);
        super::fill_random(&mut bytes);
        Self(bytes)
    }
}

/// Key material ready for use.
#[derive(Debug)]
pub enum Material {
    /// Encrypts and decrypts blobs.
    Symmetric(BackingKey),
    /// Makes and checks MACs.
    Mac(Box<MacKey>),
    /// Signs and verifies.
    RsaSign(RsaSigner),
    /// Encrypts and decrypts.
    RsaEncrypt(RsaDecrypter),
    /// Signs and verifies.
    EcSign(EcSigner),
    /// Agrees on secrets.
    EcAgree(EcAgreer),
    /// Signs and verifies.
    Edwards(EdwardsSigner),
    /// Signs and verifies.
    MlDsa(MlDsaSigner),
    /// Encapsulates and decapsulates.
    MlKem(MlKemKey),
}

impl Material {
    /// Parses canonical bytes.
    pub fn open(kind: MaterialKind, bytes: &MaterialBytes) -> Result<Self, MaterialError> {
        let bytes = bytes.expose();
        Ok(match kind {
            MaterialKind::Symmetric => {
                let mut copy: Zeroizing<[u8; MATERIAL_LEN]> =
                    Zeroizing::new(bytes.try_into().map_err(|_| MaterialError)?);
                Self::Symmetric(BackingKey::take(&mut copy))
            }
            MaterialKind::Mac(hash) => Self::Mac(Box::new(MacKey::new(hash, bytes))),
            MaterialKind::RsaSign(_) => Self::RsaSign(RsaSigner::open(bytes)?),
            MaterialKind::RsaEncrypt(_) => Self::RsaEncrypt(RsaDecrypter::open(bytes)?),
            MaterialKind::EcSign(curve) => Self::EcSign(EcSigner::open(curve, bytes)?),
            MaterialKind::EcAgree(curve) => Self::EcAgree(EcAgreer::open(curve, bytes)?),
            MaterialKind::Edwards => Self::Edwards(EdwardsSigner::open(bytes)?),
            MaterialKind::MlDsa(set) => Self::MlDsa(MlDsaSigner::open(set, bytes)?),
            MaterialKind::MlKem(set) => Self::MlKem(MlKemKey::open(set, bytes)?),
        })
    }

    /// The public key of a pair: SubjectPublicKeyInfo (RFC 5280) in DER.
    pub fn public_key(&self) -> Option<&[u8]> {
        match self {
            Self::Symmetric(_) | Self::Mac(_) => None,
            Self::RsaSign(key) => Some(key.public_key()),
            Self::RsaEncrypt(key) => Some(key.public_key()),
            Self::EcSign(key) => Some(key.public_key()),
            Self::EcAgree(key) => Some(key.public_key()),
            Self::Edwards(key) => Some(key.public_key()),
            Self::MlDsa(key) => Some(key.public_key()),
            Self::MlKem(key) => Some(key.public_key()),
        }
    }

    /// The material of a symmetric key.
    pub fn symmetric(&self) -> Option<&BackingKey> {
        if let Self::Symmetric(key) = self { Some(key) } else { None }
    }
}
