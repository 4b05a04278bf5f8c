//! Elliptic curves of short Weierstrass form: ECDSA and ECDH, by aws-lc.

use aws_lc_rs::agreement::{self, ParsedPublicKeyFormat, PrivateKey, agree};
use aws_lc_rs::encoding::{AsBigEndian, AsDer, EcPrivateKeyBin, PublicKeyX509Der};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256K1_SHA256_ASN1,
    ECDSA_P256K1_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING,
    ECDSA_P521_SHA512_ASN1, ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    EcdsaVerificationAlgorithm, KeyPair, ParsedPublicKey,
};
use aws_lc_rs::{digest, rand};
use zeroize::Zeroizing;

use super::{MaterialError, Sha2, SignInput, SignScheme, der};

/// Which curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// NIST P-256, secp256r1.
    P256,
    /// NIST P-384, secp384r1.
    P384,
    /// NIST P-521, secp521r1.
    P521,
    /// secp256k1; for signatures only.
    K256,
}

impl Curve {
    /// The one hash that signatures on this curve use.
    pub const fn hash(self) -> Sha2 {
        match self {
            Self::P256 | Self::K256 => Sha2::Sha256,
            Self::P384 => Sha2::Sha384,
            Self::P521 => Sha2::Sha512,
        }
    }

    const fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
            Self::P384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
            Self::P521 => &ECDSA_P521_SHA512_ASN1_SIGNING,
            Self::K256 => &ECDSA_P256K1_SHA256_ASN1_SIGNING,
        }
    }

    const fn verification(self) -> (&'static EcdsaVerificationAlgorithm, &'static digest::Algorithm) {
        match self {
            Self::P256 => (&ECDSA_P256_SHA256_ASN1, &digest::SHA256),
            Self::P384 => (&ECDSA_P384_SHA384_ASN1, &digest::SHA384),
            Self::P521 => (&ECDSA_P521_SHA512_ASN1, &digest::SHA512),
            Self::K256 => (&ECDSA_P256K1_SHA256_ASN1, &digest::SHA256),
        }
    }

    fn agreement(self) -> Result<&'static agreement::Algorithm, MaterialError> {
        match self {
            Self::P256 => Ok(&agreement::ECDH_P256),
            Self::P384 => Ok(&agreement::ECDH_P384),
            Self::P521 => Ok(&agreement::ECDH_P521),
            Self::K256 => Err(MaterialError),
        }
    }
}

/// A fresh private scalar.
pub fn generate(curve: Curve) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
    scalar_of(&generate_pair(curve)?)
}

/// A fresh pair, whose PKCS#8 carries its public key.
pub(super) fn generate_pair(curve: Curve) -> Result<EcdsaKeyPair, MaterialError> {
    Ok(EcdsaKeyPair::generate(curve.signing())?)
}

/// The private scalar of an imported key.
pub fn import(curve: Curve, pkcs8: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
    scalar_of(&EcdsaKeyPair::from_pkcs8(curve.signing(), pkcs8)?)
}

fn scalar_of(pair: &EcdsaKeyPair) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
    let scalar: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes()?;
    Ok(Zeroizing::new(scalar.as_ref().to_vec()))
}

fn pair_of(curve: Curve, scalar: &[u8]) -> Result<EcdsaKeyPair, MaterialError> {
    Ok(EcdsaKeyPair::from_private_key_der(curve.signing(), &der::ec_private_key(scalar))?)
}

pub(super) fn spki_of(pair: &EcdsaKeyPair) -> Result<Vec<u8>, MaterialError> {
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der()?;
    Ok(der.as_ref().to_vec())
}

/// A key pair that signs.
pub struct EcSigner {
    curve: Curve,
    pair: EcdsaKeyPair,
    public: ParsedPublicKey,
    spki: Vec<u8>,
}

impl std::fmt::Debug for EcSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EcSigner({:?})", self.curve)
    }
}

impl EcSigner {
    pub(super) fn open(curve: Curve, scalar: &[u8]) -> Result<Self, MaterialError> {
        let pair = pair_of(curve, scalar)?;
        let spki = spki_of(&pair)?;
        let public = ParsedPublicKey::new(curve.verification().0, pair.public_key().as_ref())?;
        Ok(Self { curve, pair, public, spki })
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.spki
    }

    pub(super) fn sign(&self, scheme: SignScheme, input: SignInput<'_>) -> Result<Vec<u8>, MaterialError> {
        if scheme != SignScheme::Ecdsa(self.curve.hash()) {
            return Err(MaterialError);
        }
        let signature = match input {
            SignInput::Raw(message) => self.pair.sign(&rand::SystemRandom::new(), message)?,
            SignInput::Digest(value) => {
                let (_, hash) = self.curve.verification();
                self.pair.sign_digest(&digest::Digest::import_less_safe(value, hash)?)?
            }
            SignInput::Mu(_) => return Err(MaterialError),
        };
        Ok(signature.as_ref().to_vec())
    }

    pub(super) fn verify(&self, scheme: SignScheme, input: SignInput<'_>, signature: &[u8]) -> bool {
        if scheme != SignScheme::Ecdsa(self.curve.hash()) {
            return false;
        }
        match input {
            SignInput::Raw(message) => self.public.verify_sig(message, signature).is_ok(),
            SignInput::Digest(value) => {
                let (_, hash) = self.curve.verification();
                digest::Digest::import_less_safe(value, hash)
                    .is_ok_and(|value| self.public.verify_digest_sig(&value, signature).is_ok())
            }
            SignInput::Mu(_) => false,
        }
    }
}

/// A key pair that agrees on secrets.
pub struct EcAgreer {
    curve: Curve,
    private: PrivateKey,
    spki: Vec<u8>,
}

impl std::fmt::Debug for EcAgreer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EcAgreer({:?})", self.curve)
    }
}

impl EcAgreer {
    pub(super) fn open(curve: Curve, scalar: &[u8]) -> Result<Self, MaterialError> {
        let private = PrivateKey::from_private_key(curve.agreement()?, scalar)?;
        let der: PublicKeyX509Der<'_> = private.compute_public_key()?.as_der()?;
        let spki = der.as_ref().to_vec();
        Ok(Self { curve, private, spki })
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.spki
    }

    /// The x-coordinate of the shared point (SP 800-56A, 5.7.1.2). `peer` is a SubjectPublicKeyInfo in DER of a valid
    /// point on the same curve.
    pub fn agree(&self, peer: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        if !der::is_one_value(peer) {
            return Err(MaterialError);
        }
        let peer = agreement::UnparsedPublicKey::new(self.curve.agreement()?, peer);
        let peer = agreement::ParsedPublicKey::try_from(peer)?;
        if peer.format() != ParsedPublicKeyFormat::X509 {
            return Err(MaterialError);
        }
        agree(&self.private, peer, MaterialError, |secret| Ok(Zeroizing::new(secret.to_vec())))
    }
}
