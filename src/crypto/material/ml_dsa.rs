//! ML-DSA (FIPS 204): messages by aws-lc, the representative mu by ml-dsa.

use std::convert::Infallible;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{
    KeyPair, ML_DSA_44, ML_DSA_44_SIGNING, ML_DSA_65, ML_DSA_65_SIGNING, ML_DSA_87, ML_DSA_87_SIGNING,
    PqdsaKeyPair, PqdsaSigningAlgorithm, PqdsaVerificationAlgorithm, UnparsedPublicKey,
};
use ml_dsa::signature::rand_core::{TryCryptoRng, TryRng};
use ml_dsa::{EncodedSignature, MlDsa44, MlDsa65, MlDsa87, MlDsaParams, Signature};
use zeroize::Zeroizing;

use super::super::{fill_random, random_array};
use super::{MaterialError, SignInput, SignScheme};

/// Bytes of a seed.
pub const SEED_LEN: usize = 32;

/// Which parameter set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlDsaSet {
    /// ML-DSA-44.
    MlDsa44,
    /// ML-DSA-65.
    MlDsa65,
    /// ML-DSA-87.
    MlDsa87,
}

impl MlDsaSet {
    const fn algorithms(self) -> (&'static PqdsaSigningAlgorithm, &'static PqdsaVerificationAlgorithm) {
        match self {
            Self::MlDsa44 => (&ML_DSA_44_SIGNING, &ML_DSA_44),
            Self::MlDsa65 => (&ML_DSA_65_SIGNING, &ML_DSA_65),
            Self::MlDsa87 => (&ML_DSA_87_SIGNING, &ML_DSA_87),
        }
    }
}

/// The seed of an imported key; one that brings its expanded form only has none and is refused.
pub fn import(set: MlDsaSet, pkcs8: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
    let pair = PqdsaKeyPair::from_pkcs8(set.algorithms().0, pkcs8)?;
    let written = Zeroizing::new(pair.to_pkcs8v1()?.as_ref().to_vec());
    let seed = written.len().checked_sub(SEED_LEN).map(|at| &written[at..]).ok_or(MaterialError)?;
    let again = PqdsaKeyPair::from_seed(set.algorithms().0, seed)?;
    if again.public_key().as_ref() != pair.public_key().as_ref() {
        return Err(MaterialError);
    }
    Ok(Zeroizing::new(seed.to_vec()))
}

/// A key pair that signs.
pub struct MlDsaSigner {
    set: MlDsaSet,
    pair: PqdsaKeyPair,
    seed: Zeroizing<[u8; SEED_LEN]>,
    spki: Vec<u8>,
}

impl std::fmt::Debug for MlDsaSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MlDsaSigner({:?})", self.set)
    }
}

impl MlDsaSigner {
    pub(super) fn open(set: MlDsaSet, seed: &[u8]) -> Result<Self, MaterialError> {
        let pair = PqdsaKeyPair::from_seed(set.algorithms().0, seed)?;
        let der: PublicKeyX509Der<'_> = pair.public_key().as_der()?;
        let spki = der.as_ref().to_vec();
        let seed = Zeroizing::new(seed.try_into().map_err(|_| MaterialError)?);
        Ok(Self { set, pair, seed, spki })
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.spki
    }

    pub(super) fn sign(&self, scheme: SignScheme, input: SignInput<'_>) -> Result<Vec<u8>, MaterialError> {
        if scheme != SignScheme::MlDsa {
            return Err(MaterialError);
        }
        match input {
            SignInput::Raw(message) => {
                let mut signature = vec![0; self.set.algorithms().0.signature_len()];
                let len = self.pair.sign(message, &mut signature)?;
                signature.truncate(len);
                Ok(signature)
            }
            SignInput::Mu(mu) => match self.set {
                MlDsaSet::MlDsa44 => sign_mu::<MlDsa44>(&self.seed, mu),
                MlDsaSet::MlDsa65 => sign_mu::<MlDsa65>(&self.seed, mu),
                MlDsaSet::MlDsa87 => sign_mu::<MlDsa87>(&self.seed, mu),
            },
            SignInput::Digest(_) => Err(MaterialError),
        }
    }

    pub(super) fn verify(&self, scheme: SignScheme, input: SignInput<'_>, signature: &[u8]) -> bool {
        if scheme != SignScheme::MlDsa {
            return false;
        }
        match input {
            SignInput::Raw(message) => {
                let key = UnparsedPublicKey::new(self.set.algorithms().1, self.pair.public_key().as_ref());
                key.verify(message, signature).is_ok()
            }
            SignInput::Mu(mu) => match self.set {
                MlDsaSet::MlDsa44 => verify_mu::<MlDsa44>(&self.seed, mu, signature),
                MlDsaSet::MlDsa65 => verify_mu::<MlDsa65>(&self.seed, mu, signature),
                MlDsaSet::MlDsa87 => verify_mu::<MlDsa87>(&self.seed, mu, signature),
            },
            SignInput::Digest(_) => false,
        }
    }
}

/// A hedged signature, as FIPS 204 prefers.
fn sign_mu<P: MlDsaParams>(seed: &[u8; SEED_LEN], mu: &[u8; 64]) -> Result<Vec<u8>, MaterialError> {
    let key = ml_dsa::SigningKey::<P>::from_seed(&(*seed).into());
    let signature = key.expanded_key().sign_mu_randomized(&(*mu).into(), &mut Generator);
    Ok(signature.map_err(|_| MaterialError)?.encode().to_vec())
}

/// The generator of this program, as ml-dsa wants to see it.
struct Generator;

impl TryRng for Generator {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_le_bytes(random_array()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_le_bytes(random_array()))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        fill_random(out);
        Ok(())
    }
}

impl TryCryptoRng for Generator {}

fn verify_mu<P: MlDsaParams>(seed: &[u8; SEED_LEN], mu: &[u8; 64], signature: &[u8]) -> bool {
    let Ok(encoded) = EncodedSignature::<P>::try_from(signature) else { return false };
    let Some(signature) = Signature::<P>::decode(&encoded) else { return false };
    let key = ml_dsa::SigningKey::<P>::from_seed(&(*seed).into());
    key.expanded_key().verifying_key().verify_mu(&(*mu).into(), &signature)
}
