//! Every kind: made, sealed form opened again, used; imported in other encodings; used wrongly.

use super::*;

fn kinds() -> Vec<MaterialKind> {
    let mut all = vec![MaterialKind::Symmetric, MaterialKind::Edwards];
    all.extend([Sha2::Sha224, Sha2::Sha256, Sha2::Sha384, Sha2::Sha512].map(MaterialKind::Mac));
    all.extend([Curve::P256, Curve::P384, Curve::P521, Curve::K256].map(MaterialKind::EcSign));
    all.extend([Curve::P256, Curve::P384, Curve::P521].map(MaterialKind::EcAgree));
    all.extend([MlDsaSet::MlDsa44, MlDsaSet::MlDsa65, MlDsaSet::MlDsa87].map(MaterialKind::MlDsa));
    all.extend([MlKemSet::MlKem512, MlKemSet::MlKem768, MlKemSet::MlKem1024].map(MaterialKind::MlKem));
    all.extend([MaterialKind::RsaSign(RsaBits::B2048), MaterialKind::RsaEncrypt(RsaBits::B2048)]);
    all
}

fn open(kind: MaterialKind, bytes: &MaterialBytes) -> Material {
    Material::open(kind, bytes).unwrap_or_else(|_| panic!("{kind:?}"))
}

#[test]
fn material_of_every_kind_opens_twice_as_the_same() {
    for kind in kinds() {
        let bytes = MaterialBytes::generate(kind).unwrap();
        let (one, two) = (open(kind, &bytes), open(kind, &bytes));
        assert_eq!(one.public_key(), two.public_key(), "{kind:?}");
        let is_pair = !matches!(kind, MaterialKind::Symmetric | MaterialKind::Mac(_));
        assert_eq!(one.public_key().is_some(), is_pair, "{kind:?}");
        assert_ne!(bytes.expose(), MaterialBytes::generate(kind).unwrap().expose(), "{kind:?}");
    }
}

#[test]
fn what_one_opening_signs_the_other_verifies_and_nothing_else() {
    use SignInput as I;
    use SignScheme as S;
    let digest = [7; 64];
    let rsa = MaterialKind::RsaSign(RsaBits::B2048);
    let mut cases = vec![
        (MaterialKind::Edwards, S::Ed25519, I::Raw(b"m")),
        (MaterialKind::Edwards, S::Ed25519Ph, I::Digest(&digest)),
    ];
    for hash in [Sha2::Sha256, Sha2::Sha384, Sha2::Sha512] {
        for scheme in [S::RsaPss(hash), S::RsaPkcs1(hash)] {
            cases.push((rsa, scheme, I::Raw(b"m")));
            cases.push((rsa, scheme, I::Digest(&digest[..hash.digest_len()])));
        }
    }
    for curve in [Curve::P256, Curve::P384, Curve::P521, Curve::K256] {
        let (kind, scheme) = (MaterialKind::EcSign(curve), S::Ecdsa(curve.hash()));
        cases.push((kind, scheme, I::Raw(b"m")));
        cases.push((kind, scheme, I::Digest(&digest[..curve.hash().digest_len()])));
    }
    for set in [MlDsaSet::MlDsa44, MlDsaSet::MlDsa65, MlDsaSet::MlDsa87] {
        cases.push((MaterialKind::MlDsa(set), S::MlDsa, I::Raw(b"m")));
        cases.push((MaterialKind::MlDsa(set), S::MlDsa, I::Mu(&digest)));
    }
    let rsa_bytes = MaterialBytes::generate(rsa).unwrap();
    for (kind, scheme, input) in cases {
        let fresh =
            MaterialBytes::generate(if kind == rsa { MaterialKind::Symmetric } else { kind }).unwrap();
        let bytes = if kind == rsa { &rsa_bytes } else { &fresh };
        let mut signature = open(kind, bytes).sign(scheme, input).unwrap();
        let key = open(kind, bytes);
        assert!(key.verify(scheme, input, &signature), "{kind:?} {scheme:?} {input:?}");
        assert!(!key.verify(scheme, I::Raw(b"other"), &signature), "{kind:?} {scheme:?} {input:?}");
        let middle = signature.len() / 2;
        signature[middle] ^= 1;
        assert!(!key.verify(scheme, input, &signature), "{kind:?} {scheme:?} {input:?}");
        assert!(!key.verify(scheme, input, &[]), "{kind:?} {scheme:?} {input:?}");
    }
}

#[test]
fn a_digest_and_its_message_are_signed_alike() {
    let kind = MaterialKind::EcSign(Curve::P256);
    let key = open(kind, &MaterialBytes::generate(kind).unwrap());
    let scheme = SignScheme::Ecdsa(Sha2::Sha256);
    let digest = crate::crypto::sha256(b"message");
    let signature = key.sign(scheme, SignInput::Raw(b"message")).unwrap();
    assert!(key.verify(scheme, SignInput::Digest(&digest), &signature));
    assert!(key.sign(scheme, SignInput::Digest(&digest[1..])).is_err(), "not as long as the hash");
}

#[test]
fn mu_and_its_message_are_signed_alike() {
    use sha2::digest::Update;
    let kind = MaterialKind::MlDsa(MlDsaSet::MlDsa65);
    let bytes = MaterialBytes::generate(kind).unwrap();
    let seed: [u8; 32] = bytes.expose().try_into().unwrap();
    let public =
        ::ml_dsa::SigningKey::<::ml_dsa::MlDsa65>::from_seed(&seed.into()).expanded_key().verifying_key();
    let feed = |shake: &mut _| {
        Update::update(shake, b"message");
        Ok(())
    };
    let mu: [u8; 64] = public.compute_mu(feed, &[]).unwrap().into();
    let key = open(kind, &bytes);
    let by_message = key.sign(SignScheme::MlDsa, SignInput::Raw(b"message")).unwrap();
    assert!(key.verify(SignScheme::MlDsa, SignInput::Mu(&mu), &by_message));
    let by_mu = key.sign(SignScheme::MlDsa, SignInput::Mu(&mu)).unwrap();
    assert!(key.verify(SignScheme::MlDsa, SignInput::Raw(b"message"), &by_mu));
}

#[test]
fn the_private_scalar_of_an_imported_key_is_its_material() {
    let kind = MaterialKind::EcSign(Curve::P256);
    let pair = DataKeyPair::generate(DataKeyPairKind::Ec(Curve::P256)).unwrap();
    let bytes = MaterialBytes::import(kind, &pair.private).unwrap();
    assert_eq!(bytes.expose().len(), 32);
    assert_eq!(open(kind, &bytes).public_key(), Some(pair.public.as_slice()));
    let agree = MaterialKind::EcAgree(Curve::P256);
    assert_eq!(open(agree, &bytes).public_key(), Some(pair.public.as_slice()));
    for wrong in [Curve::P384, Curve::P521, Curve::K256] {
        assert!(MaterialBytes::import(MaterialKind::EcSign(wrong), &pair.private).is_err(), "{wrong:?}");
    }
}

#[test]
fn every_kind_of_pair_imports_as_the_key_it_is() {
    for (pair, kind) in [
        (DataKeyPairKind::Rsa(RsaBits::B2048), MaterialKind::RsaSign(RsaBits::B2048)),
        (DataKeyPairKind::Ec(Curve::P384), MaterialKind::EcSign(Curve::P384)),
        (DataKeyPairKind::Ec(Curve::P521), MaterialKind::EcAgree(Curve::P521)),
        (DataKeyPairKind::Ec(Curve::K256), MaterialKind::EcSign(Curve::K256)),
        (DataKeyPairKind::Edwards, MaterialKind::Edwards),
        (DataKeyPairKind::MlKem(MlKemSet::MlKem512), MaterialKind::MlKem(MlKemSet::MlKem512)),
        (DataKeyPairKind::MlKem(MlKemSet::MlKem1024), MaterialKind::MlKem(MlKemSet::MlKem1024)),
    ] {
        let made = DataKeyPair::generate(pair).unwrap();
        let bytes = MaterialBytes::import(kind, &made.private).unwrap_or_else(|_| panic!("{pair:?}"));
        assert_eq!(open(kind, &bytes).public_key(), Some(made.public.as_slice()), "{pair:?}");
        for other in kinds().into_iter().filter(|other| *other != kind) {
            let is_raw = matches!(other, MaterialKind::Symmetric | MaterialKind::Mac(_));
            let same_bytes = matches!(
                (kind, other),
                (MaterialKind::RsaSign(_), MaterialKind::RsaEncrypt(_))
                    | (MaterialKind::EcSign(Curve::P384), MaterialKind::EcAgree(Curve::P384))
                    | (MaterialKind::EcAgree(Curve::P521), MaterialKind::EcSign(Curve::P521))
            );
            if !is_raw && !same_bytes {
                assert!(MaterialBytes::import(other, &made.private).is_err(), "{pair:?} as {other:?}");
            }
        }
        assert!(MaterialBytes::import(kind, &made.private[..made.private.len() - 1]).is_err(), "{pair:?}");
    }
}

#[test]
fn raw_material_must_be_as_long_as_its_kind() {
    let fits = |kind, len: usize| MaterialBytes::import(kind, &vec![1; len]).is_ok();
    for (kind, least, most) in [
        (MaterialKind::Symmetric, 32, 32),
        (MaterialKind::Mac(Sha2::Sha224), 28, 64),
        (MaterialKind::Mac(Sha2::Sha256), 32, 64),
        (MaterialKind::Mac(Sha2::Sha384), 48, 128),
        (MaterialKind::Mac(Sha2::Sha512), 64, 128),
    ] {
        assert!(fits(kind, least) && fits(kind, most), "{kind:?}");
        assert!(!fits(kind, least - 1) && !fits(kind, most + 1), "{kind:?}");
    }
}

#[test]
fn two_key_pairs_agree_on_one_secret() {
    for curve in [Curve::P256, Curve::P384, Curve::P521] {
        let kind = MaterialKind::EcAgree(curve);
        let make = || open(kind, &MaterialBytes::generate(kind).unwrap());
        let (a, b) = (make(), make());
        let (Material::EcAgree(a), Material::EcAgree(b)) = (a, b) else { panic!("agreers") };
        let secret = a.agree(b.public_key()).unwrap();
        assert_eq!(secret, b.agree(a.public_key()).unwrap());
        let expected = match curve {
            Curve::P384 => 48,
            Curve::P521 => 66,
            _ => 32,
        };
        assert_eq!(secret.len(), expected);
        let mut off_curve = b.public_key().to_vec();
        *off_curve.last_mut().unwrap() ^= 1;
        assert!(a.agree(&off_curve).is_err());
        let point = &b.public_key()[b.public_key().len() - 2 * secret.len() - 1..];
        assert!(a.agree(point).is_err(), "a bare point is no SubjectPublicKeyInfo");
    }
}

#[test]
fn a_wrong_ciphertext_decapsulates_to_another_secret() {
    for set in [MlKemSet::MlKem512, MlKemSet::MlKem768, MlKemSet::MlKem1024] {
        let kind = MaterialKind::MlKem(set);
        let Material::MlKem(key) = open(kind, &MaterialBytes::generate(kind).unwrap()) else {
            panic!("a KEM")
        };
        let (mut ciphertext, secret) = key.encapsulate().unwrap();
        assert_eq!(key.decapsulate(&ciphertext).unwrap(), secret);
        assert_eq!(secret.len(), 32);
        assert!(key.decapsulate(&ciphertext[1..]).is_err());
        ciphertext[0] ^= 1;
        assert_ne!(key.decapsulate(&ciphertext).unwrap(), secret);
    }
}

#[test]
fn oaep_takes_what_the_service_documents() {
    let kind = MaterialKind::RsaEncrypt(RsaBits::B2048);
    let Material::RsaEncrypt(key) = open(kind, &MaterialBytes::generate(kind).unwrap()) else {
        panic!("RSA")
    };
    for (hash, most) in [(OaepHash::Sha1, 214), (OaepHash::Sha256, 190)] {
        assert_eq!(key.max_plaintext(hash), most);
        let plaintext = vec![3; most];
        let ciphertext = key.encrypt(hash, &plaintext).unwrap();
        assert_eq!(key.decrypt(hash, &ciphertext).unwrap().as_slice(), plaintext);
        assert!(key.encrypt(hash, &vec![3; most + 1]).is_err());
    }
    let ciphertext = key.encrypt(OaepHash::Sha1, b"x").unwrap();
    assert!(key.decrypt(OaepHash::Sha256, &ciphertext).is_err());
}
