//! Signatures of every kind behind one call.
//!
//! Called by the operations Sign and Verify. A scheme that is not one of the key, or an input that is not one of the
//! scheme, is an error and never a signature; the callers refuse both before, in words.

use super::{Material, MaterialError, Sha2};

/// How a signature is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignScheme {
    /// RSASSA-PSS, MGF1 with the same hash, salt as long as the digest.
    RsaPss(Sha2),
    /// RSASSA-PKCS1-v1_5.
    RsaPkcs1(Sha2),
    /// ECDSA, in DER.
    Ecdsa(Sha2),
    /// Ed25519 (RFC 8032).
    Ed25519,
    /// Ed25519ph (RFC 8032): hashes its input, whatever it is.
    Ed25519Ph,
    /// ML-DSA (FIPS 204), pure, with an empty context.
    MlDsa,
}

/// What is signed.
#[derive(Debug, Clone, Copy)]
pub enum SignInput<'a> {
    /// A message.
    Raw(&'a [u8]),
    /// The digest of one.
    Digest(&'a [u8]),
    /// The representative mu of one (FIPS 204, section 6.2).
    Mu(&'a [u8; 64]),
}

impl Material {
    /// A signature.
    pub fn sign(&self, scheme: SignScheme, input: SignInput<'_>) -> Result<Vec<u8>, MaterialError> {
        match self {
            Self::RsaSign(key) => key.sign(scheme, input),
            Self::EcSign(key) => key.sign(scheme, input),
            Self::Edwards(key) => key.sign(scheme, input),
            Self::MlDsa(key) => key.sign(scheme, input),
            _ => Err(MaterialError),
        }
    }

    /// Whether `signature` is one of `input`.
    pub fn verify(&self, scheme: SignScheme, input: SignInput<'_>, signature: &[u8]) -> bool {
        match self {
            Self::RsaSign(key) => key.verify(scheme, input, signature),
            Self::EcSign(key) => key.verify(scheme, input, signature),
            Self::Edwards(key) => key.verify(scheme, input, signature),
            Self::MlDsa(key) => key.verify(scheme, input, signature),
            _ => false,
        }
    }
}
