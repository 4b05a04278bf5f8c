//! ML-KEM (FIPS 203): encapsulation by aws-lc, keys from their seed and decapsulation by ml-kem.

use aws_lc_rs::kem::{Algorithm, EncapsulationKey, ML_KEM_512, ML_KEM_768, ML_KEM_1024};
use ml_kem::{Decapsulate, KeyExport, KeyInit, MlKem512, MlKem768, MlKem1024};
use zeroize::Zeroizing;

use super::{MaterialError, der};

/// Bytes of a seed: d, then z.
pub const SEED_LEN: usize = 64;

/// Which parameter set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlKemSet {
    /// ML-KEM-512.
    MlKem512,
    /// ML-KEM-768.
    MlKem768,
    /// ML-KEM-1024.
    MlKem1024,
}

impl MlKemSet {
    const fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::MlKem512 => &ML_KEM_512,
            Self::MlKem768 => &ML_KEM_768,
            Self::MlKem1024 => &ML_KEM_1024,
        }
    }

    /// 2.16.840.1.101.3.4.4.{1, 2, 3}.
    const fn oid(self) -> [u8; 9] {
        let last = match self {
            Self::MlKem512 => 1,
            Self::MlKem768 => 2,
            Self::MlKem1024 => 3,
        };
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x04, last]
    }
}

/// The seed of an imported key, which must come in seed format.
pub fn import(set: MlKemSet, pkcs8: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
    let seed = pkcs8.len().checked_sub(SEED_LEN).map(|at| &pkcs8[at..]).ok_or(MaterialError)?;
    if private_key_info(set, seed).as_slice() != pkcs8 {
        return Err(MaterialError);
    }
    Ok(Zeroizing::new(seed.to_vec()))
}

/// PKCS#8 in seed format (RFC 9935).
pub fn private_key_info(set: MlKemSet, seed: &[u8]) -> Zeroizing<Vec<u8>> {
    der::private_key_info_of_seed(&set.oid(), seed)
}

/// The private half of each parameter set.
enum Private {
    MlKem512(Box<ml_kem::DecapsulationKey<MlKem512>>),
    MlKem768(Box<ml_kem::DecapsulationKey<MlKem768>>),
    MlKem1024(Box<ml_kem::DecapsulationKey<MlKem1024>>),
}

impl Private {
    fn open(set: MlKemSet, seed: &[u8; SEED_LEN]) -> Self {
        match set {
            MlKemSet::MlKem512 => Self::MlKem512(Box::new(KeyInit::new(&(*seed).into()))),
            MlKemSet::MlKem768 => Self::MlKem768(Box::new(KeyInit::new(&(*seed).into()))),
            MlKemSet::MlKem1024 => Self::MlKem1024(Box::new(KeyInit::new(&(*seed).into()))),
        }
    }

    fn public_key(&self) -> Vec<u8> {
        match self {
            Self::MlKem512(key) => key.encapsulation_key().to_bytes().to_vec(),
            Self::MlKem768(key) => key.encapsulation_key().to_bytes().to_vec(),
            Self::MlKem1024(key) => key.encapsulation_key().to_bytes().to_vec(),
        }
    }

    fn decapsulate(&self, ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let secret = match self {
            Self::MlKem512(key) => key.decapsulate_slice(ciphertext),
            Self::MlKem768(key) => key.decapsulate_slice(ciphertext),
            Self::MlKem1024(key) => key.decapsulate_slice(ciphertext),
        };
        secret.ok().map(|secret| Zeroizing::new(secret.to_vec()))
    }
}

/// A key pair that encapsulates and decapsulates.
pub struct MlKemKey {
    set: MlKemSet,
    private: Private,
    public: EncapsulationKey,
    spki: Vec<u8>,
}

impl std::fmt::Debug for MlKemKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MlKemKey({:?})", self.set)
    }
}

impl MlKemKey {
    pub(super) fn open(set: MlKemSet, seed: &[u8]) -> Result<Self, MaterialError> {
        let seed: Zeroizing<[u8; SEED_LEN]> = Zeroizing::new(seed.try_into().map_err(|_| MaterialError)?);
        let private = Private::open(set, &seed);
        let public = private.public_key();
        let spki = der::public_key_info(&set.oid(), &public);
        Ok(Self { set, private, public: EncapsulationKey::new(set.algorithm(), &public)?, spki })
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.spki
    }

    /// A fresh shared secret of 32 bytes, and the ciphertext that carries it.
    pub fn encapsulate(&self) -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), MaterialError> {
        let (ciphertext, secret) = self.public.encapsulate()?;
        Ok((ciphertext.as_ref().to_vec(), Zeroizing::new(secret.as_ref().to_vec())))
    }

    /// The shared secret that `ciphertext` carries. One that was not made for this key gives another secret (implicit
    /// rejection); only a wrong length is an error.
    pub fn decapsulate(&self, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        self.private.decapsulate(ciphertext).ok_or(MaterialError)
    }
}
