//! What the specs and usages of keys mean: which go together, which material and which algorithms they have.
//!
//! Called by the operations that make, describe and use keys. Pure tables.

use crate::api::{KeySpec, KeyUsage};
use crate::crypto::{Curve, MaterialKind, MlDsaSet, MlKemSet, RsaBits, Sha2};

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
