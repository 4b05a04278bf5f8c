//! The material of an import, PKCS#8 for key pairs, as it is once it is unwrapped. The first byte chooses the kind.
#![no_main]

use kmsfs::crypto::{Curve, Material, MaterialBytes, MaterialKind as K, MlDsaSet, MlKemSet, RsaBits, Sha2};
use libfuzzer_sys::fuzz_target;

const KINDS: [K; 14] = [
    K::Symmetric,
    K::Mac(Sha2::Sha256),
    K::RsaSign(RsaBits::B2048),
    K::RsaEncrypt(RsaBits::B3072),
    K::RsaSign(RsaBits::B4096),
    K::EcSign(Curve::P256),
    K::EcSign(Curve::P384),
    K::EcAgree(Curve::P521),
    K::EcSign(Curve::K256),
    K::Edwards,
    K::MlDsa(MlDsaSet::MlDsa44),
    K::MlDsa(MlDsaSet::MlDsa87),
    K::MlKem(MlKemSet::MlKem512),
    K::MlKem(MlKemSet::MlKem1024),
];

fuzz_target!(|data: &[u8]| {
    let Some((first, material)) = data.split_first() else { return };
    let kind = KINDS[usize::from(*first) % KINDS.len()];
    let Ok(bytes) = MaterialBytes::import(kind, material) else { return };
    // What is taken can be opened, now and after a restart.
    assert!(Material::open(kind, &bytes).is_ok(), "{kind:?}");
});
