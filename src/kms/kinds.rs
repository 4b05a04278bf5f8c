//! What the specs and usages of keys mean: which go together, which material and which algorithms they have.
//!
//! Called by the operations that make, describe and use keys. Pure tables.

use crate::api::{
    DataKeyPairSpec, EncapsulationAlgorithm, EncryptionAlgorithm, KeyAgreementAlgorithm, KeySpec, KeyUsage,
    MacAlgorithm, SigningAlgorithm,
};
use crate::crypto::{Curve, DataKeyPairKind, MaterialKind, MlDsaSet, MlKemSet, RsaBits, Sha2, SignScheme};

/// What keys of a spec can be for.
pub fn usages(spec: KeySpec) -> &'static [KeyUsage] {
    use KeySpec as S;
    match spec {
        S::SymmetricDefault => &[KeyUsage::EncryptDecrypt],
        S::Rsa2048 | S::Rsa3072 | S::Rsa4096 => &[KeyUsage::EncryptDecrypt, KeyUsage::SignVerify],
        S::EccNistP256 | S::EccNistP384 | S::EccNistP521 => &[KeyUsage::SignVerify, KeyUsage::KeyAgreement],
        S::Sm2 => &[KeyUsage::EncryptDecrypt, KeyUsage::SignVerify, KeyUsage::KeyAgreement],
        S::EccSecgP256K1 | S::EccNistEdwards25519 | S::MlDsa44 | S::MlDsa65 | S::MlDsa87 => {
            &[KeyUsage::SignVerify]
        }
        S::Hmac224 | S::Hmac256 | S::Hmac384 | S::Hmac512 => &[KeyUsage::GenerateVerifyMac],
        S::MlKem512 | S::MlKem768 | S::MlKem1024 => &[KeyUsage::EncapsulateDecapsulate],
    }
}

/// Whether keys of a spec are key pairs.
pub fn is_pair(spec: KeySpec) -> bool {
    use KeySpec as S;
    !matches!(spec, S::SymmetricDefault | S::Hmac224 | S::Hmac256 | S::Hmac384 | S::Hmac512)
}

/// The material of such keys; nothing for SM2, which is not served, and for a usage that the spec does not have.
pub fn material_kind(spec: KeySpec, usage: KeyUsage) -> Option<MaterialKind> {
    use KeySpec as S;
    use MaterialKind as K;
    if !usages(spec).contains(&usage) {
        return None;
    }
    let rsa = |bits| if usage == KeyUsage::SignVerify { K::RsaSign(bits) } else { K::RsaEncrypt(bits) };
    let ec = |curve| if usage == KeyUsage::SignVerify { K::EcSign(curve) } else { K::EcAgree(curve) };
    Some(match spec {
        S::SymmetricDefault => K::Symmetric,
        S::Rsa2048 => rsa(RsaBits::B2048),
        S::Rsa3072 => rsa(RsaBits::B3072),
        S::Rsa4096 => rsa(RsaBits::B4096),
        S::EccNistP256 => ec(Curve::P256),
        S::EccNistP384 => ec(Curve::P384),
        S::EccNistP521 => ec(Curve::P521),
        S::EccSecgP256K1 => ec(Curve::K256),
        S::EccNistEdwards25519 => K::Edwards,
        S::Hmac224 => K::Mac(Sha2::Sha224),
        S::Hmac256 => K::Mac(Sha2::Sha256),
        S::Hmac384 => K::Mac(Sha2::Sha384),
        S::Hmac512 => K::Mac(Sha2::Sha512),
        S::MlDsa44 => K::MlDsa(MlDsaSet::MlDsa44),
        S::MlDsa65 => K::MlDsa(MlDsaSet::MlDsa65),
        S::MlDsa87 => K::MlDsa(MlDsaSet::MlDsa87),
        S::MlKem512 => K::MlKem(MlKemSet::MlKem512),
        S::MlKem768 => K::MlKem(MlKemSet::MlKem768),
        S::MlKem1024 => K::MlKem(MlKemSet::MlKem1024),
        S::Sm2 => return None,
    })
}

/// What keys of a spec encrypt with, if that is their use.
pub fn encryption_algorithms(spec: KeySpec) -> &'static [EncryptionAlgorithm] {
    use EncryptionAlgorithm as A;
    use KeySpec as S;
    match spec {
        S::SymmetricDefault => &[A::SymmetricDefault],
        S::Rsa2048 | S::Rsa3072 | S::Rsa4096 => &[A::RsaesOaepSha1, A::RsaesOaepSha256],
        _ => &[],
    }
}

/// What keys of a spec sign with, if that is their use.
pub fn signing_algorithms(spec: KeySpec) -> &'static [SigningAlgorithm] {
    use KeySpec as S;
    use SigningAlgorithm as A;
    match spec {
        S::Rsa2048 | S::Rsa3072 | S::Rsa4096 => &[
            A::RsassaPkcs1Sha256,
            A::RsassaPkcs1Sha384,
            A::RsassaPkcs1Sha512,
            A::RsassaPssSha256,
            A::RsassaPssSha384,
            A::RsassaPssSha512,
        ],
        S::EccNistP256 | S::EccSecgP256K1 => &[A::EcdsaSha256],
        S::EccNistP384 => &[A::EcdsaSha384],
        S::EccNistP521 => &[A::EcdsaSha512],
        S::EccNistEdwards25519 => &[A::Ed25519Sha512, A::Ed25519PhSha512],
        S::MlDsa44 | S::MlDsa65 | S::MlDsa87 => &[A::MlDsaShake256],
        _ => &[],
    }
}

/// How a signing algorithm works; nothing for SM2DSA, which is not served.
pub fn sign_scheme(algorithm: SigningAlgorithm) -> Option<SignScheme> {
    use SigningAlgorithm as A;
    Some(match algorithm {
        A::RsassaPssSha256 => SignScheme::RsaPss(Sha2::Sha256),
        A::RsassaPssSha384 => SignScheme::RsaPss(Sha2::Sha384),
        A::RsassaPssSha512 => SignScheme::RsaPss(Sha2::Sha512),
        A::RsassaPkcs1Sha256 => SignScheme::RsaPkcs1(Sha2::Sha256),
        A::RsassaPkcs1Sha384 => SignScheme::RsaPkcs1(Sha2::Sha384),
        A::RsassaPkcs1Sha512 => SignScheme::RsaPkcs1(Sha2::Sha512),
        A::EcdsaSha256 => SignScheme::Ecdsa(Sha2::Sha256),
        A::EcdsaSha384 => SignScheme::Ecdsa(Sha2::Sha384),
        A::EcdsaSha512 => SignScheme::Ecdsa(Sha2::Sha512),
        A::MlDsaShake256 => SignScheme::MlDsa,
        A::Ed25519Sha512 => SignScheme::Ed25519,
        A::Ed25519PhSha512 => SignScheme::Ed25519Ph,
        A::Sm2dsa => return None,
    })
}

/// What keys of a spec make MACs with.
pub fn mac_algorithms(spec: KeySpec) -> &'static [MacAlgorithm] {
    match spec {
        KeySpec::Hmac224 => &[MacAlgorithm::HmacSha224],
        KeySpec::Hmac256 => &[MacAlgorithm::HmacSha256],
        KeySpec::Hmac384 => &[MacAlgorithm::HmacSha384],
        KeySpec::Hmac512 => &[MacAlgorithm::HmacSha512],
        _ => &[],
    }
}

/// What a key of that spec and usage can do, as its description lists it: one of the lists, and none of the others.
#[derive(Debug, Default)]
pub struct Algorithms {
    /// To encrypt.
    pub encryption: Option<Vec<EncryptionAlgorithm>>,
    /// To sign.
    pub signing: Option<Vec<SigningAlgorithm>>,
    /// To make MACs.
    pub mac: Option<Vec<MacAlgorithm>>,
    /// To agree on secrets.
    pub agreement: Option<Vec<KeyAgreementAlgorithm>>,
    /// To encapsulate secrets.
    pub encapsulation: Option<Vec<EncapsulationAlgorithm>>,
}

impl Algorithms {
    /// From the tables.
    pub fn of(spec: KeySpec, usage: KeyUsage) -> Self {
        let none = Self::default();
        match usage {
            KeyUsage::EncryptDecrypt => {
                Self { encryption: Some(encryption_algorithms(spec).to_vec()), ..none }
            }
            KeyUsage::SignVerify => Self { signing: Some(signing_algorithms(spec).to_vec()), ..none },
            KeyUsage::GenerateVerifyMac => Self { mac: Some(mac_algorithms(spec).to_vec()), ..none },
            KeyUsage::KeyAgreement => Self { agreement: Some(vec![KeyAgreementAlgorithm::Ecdh]), ..none },
            KeyUsage::EncapsulateDecapsulate => {
                Self { encapsulation: Some(vec![EncapsulationAlgorithm::MlKem]), ..none }
            }
        }
    }
}

/// What a data key pair is made of; nothing for SM2, which is not served.
pub fn data_key_pair_kind(spec: DataKeyPairSpec) -> Option<DataKeyPairKind> {
    use DataKeyPairKind as K;
    use DataKeyPairSpec as S;
    Some(match spec {
        S::Rsa2048 => K::Rsa(RsaBits::B2048),
        S::Rsa3072 => K::Rsa(RsaBits::B3072),
        S::Rsa4096 => K::Rsa(RsaBits::B4096),
        S::EccNistP256 => K::Ec(Curve::P256),
        S::EccNistP384 => K::Ec(Curve::P384),
        S::EccNistP521 => K::Ec(Curve::P521),
        S::EccSecgP256K1 => K::Ec(Curve::K256),
        S::EccNistEdwards25519 => K::Edwards,
        S::MlKem512 => K::MlKem(MlKemSet::MlKem512),
        S::MlKem768 => K::MlKem(MlKemSet::MlKem768),
        S::MlKem1024 => K::MlKem(MlKemSet::MlKem1024),
        S::Sm2 => return None,
    })
}
