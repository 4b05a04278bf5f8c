//! Key pairs that are made for a caller and not kept.
//!
//! Called by GenerateDataKeyPair. The one place where private keys leave `crypto` on purpose.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use zeroize::Zeroizing;

use super::ml_kem::{self, MlKemKey, MlKemSet, private_key_info};
use super::{Curve, MaterialBytes, MaterialError, MaterialKind, RsaBits, ec, rsa};

/// What kind of pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataKeyPairKind {
    /// RSA.
    Rsa(RsaBits),
    /// An elliptic curve of short Weierstrass form.
    Ec(Curve),
    /// Ed25519.
    Edwards,
    /// ML-KEM.
    MlKem(MlKemSet),
}

/// A key pair, both halves encoded.
pub struct DataKeyPair {
    /// PKCS#8 v1 in DER.
    pub private: Zeroizing<Vec<u8>>,
    /// SubjectPublicKeyInfo in DER.
    pub public: Vec<u8>,
}

impl std::fmt::Debug for DataKeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKeyPair(..)")
    }
}

impl DataKeyPair {
    /// A fresh pair. RSA takes its time.
    pub fn generate(kind: DataKeyPairKind) -> Result<Self, MaterialError> {
        match kind {
            DataKeyPairKind::Rsa(bits) => {
                let private = rsa::generate(bits)?;
                let public = rsa::RsaSigner::open(&private)?.public_key().to_vec();
                Ok(Self { private, public })
            }
            DataKeyPairKind::Ec(curve) => {
                let pair = ec::generate_pair(curve)?;
                let private = Zeroizing::new(pair.to_pkcs8v1()?.as_ref().to_vec());
                Ok(Self { private, public: ec::spki_of(&pair)? })
            }
            DataKeyPairKind::Edwards => {
                let pair = Ed25519KeyPair::generate()?;
                let private: Pkcs8V1Der<'_> = pair.as_der()?;
                let public: PublicKeyX509Der<'_> = pair.public_key().as_der()?;
                Ok(Self {
                    private: Zeroizing::new(private.as_ref().to_vec()),
                    public: public.as_ref().to_vec(),
                })
            }
            DataKeyPairKind::MlKem(set) => {
                let seed = MaterialBytes::generate(MaterialKind::MlKem(set))?;
                debug_assert_eq!(seed.expose().len(), ml_kem::SEED_LEN);
                let public = MlKemKey::open(set, seed.expose())?.public_key().to_vec();
                Ok(Self { private: private_key_info(set, seed.expose()), public })
            }
        }
    }
}
