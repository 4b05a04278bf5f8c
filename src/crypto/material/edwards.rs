//! Ed25519 by aws-lc, Ed25519ph by ed25519-dalek.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use sha2::{Digest, Sha512};
use zeroize::Zeroizing;

use super::{MaterialError, SignInput, SignScheme};

/// Bytes of a seed.
pub const SEED_LEN: usize = 32;

/// The seed of an imported key.
pub fn import(pkcs8: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
    let seed = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)?.seed()?;
    let der: aws_lc_rs::encoding::Curve25519SeedBin<'_> =
        aws_lc_rs::encoding::AsBigEndian::as_be_bytes(&seed)?;
    Ok(Zeroizing::new(der.as_ref().to_vec()))
}

/// A key pair that signs.
pub struct EdwardsSigner {
    pair: Ed25519KeyPair,
    prehash: SigningKey,
    spki: Vec<u8>,
}

impl std::fmt::Debug for EdwardsSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EdwardsSigner(..)")
    }
}

impl EdwardsSigner {
    pub(super) fn open(seed: &[u8]) -> Result<Self, MaterialError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed)?;
        let der: PublicKeyX509Der<'_> = pair.public_key().as_der()?;
        let spki = der.as_ref().to_vec();
        let seed: Zeroizing<[u8; SEED_LEN]> = Zeroizing::new(seed.try_into().map_err(|_| MaterialError)?);
        Ok(Self { pair, prehash: SigningKey::from_bytes(&seed), spki })
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.spki
    }

    pub(super) fn sign(&self, scheme: SignScheme, input: SignInput<'_>) -> Result<Vec<u8>, MaterialError> {
        match (scheme, input) {
            (SignScheme::Ed25519, SignInput::Raw(message)) => {
                Ok(self.pair.try_sign(message)?.as_ref().to_vec())
            }
            (SignScheme::Ed25519Ph, SignInput::Digest(message)) => {
                let hash = Sha512::new_with_prefix(message);
                let signature = self.prehash.sign_prehashed(hash, None).map_err(|_| MaterialError)?;
                Ok(signature.to_bytes().to_vec())
            }
            _ => Err(MaterialError),
        }
    }

    pub(super) fn verify(&self, scheme: SignScheme, input: SignInput<'_>, signature: &[u8]) -> bool {
        match (scheme, input) {
            (SignScheme::Ed25519, SignInput::Raw(message)) => {
                let key = UnparsedPublicKey::new(&ED25519, self.pair.public_key().as_ref());
                key.verify(message, signature).is_ok()
            }
            (SignScheme::Ed25519Ph, SignInput::Digest(message)) => {
                let Ok(signature) = Signature::from_slice(signature) else { return false };
                let key: VerifyingKey = self.prehash.verifying_key();
                let hash = Sha512::new_with_prefix(message);
                key.verify_prehashed_strict(hash, None, &signature).is_ok()
            }
            _ => false,
        }
    }
}
