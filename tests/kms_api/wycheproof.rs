//! Vectors of Project Wycheproof whose private key is known: imported, then used as any caller would.

use serde_json::{Value, json};

use crate::harness::{Service, b64, service, unb64};
use crate::imports::Import;

const VECTORS: &str = include_str!("../vectors/wycheproof.json");

fn vectors(kind: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    let groups = all[kind].as_array().unwrap().clone();
    assert!(!groups.is_empty());
    groups
}

fn bytes(value: &Value) -> Vec<u8> {
    kmsfs::api::unhex(value.as_str().unwrap()).unwrap()
}

fn import(s: &Service, spec: &Value, usage: &str, wrapping: &str, material: &[u8]) -> String {
    let key = s.key_with(json!({"Origin": "EXTERNAL", "KeySpec": spec, "KeyUsage": usage}));
    let request = Import::begin(s, &key, wrapping, "RSA_2048").request(&key, material);
    let answer = s.ok("ImportKeyMaterial", request);
    assert_eq!(answer.get("KeyMaterialId"), None, "symmetric keys only tell it");
    key
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    assert!(content.len() < 0x80);
    [&[tag, content.len() as u8], content].concat()
}

/// PKCS#8 (RFC 5208) of a scalar of a NIST curve (RFC 5915), without the public key.
fn ec_pkcs8(spec: &str, scalar: &[u8]) -> Vec<u8> {
    let (oid, len): (&[u8], usize) = match spec {
        "ECC_NIST_P256" => (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7], 32),
        "ECC_NIST_P384" => (&[0x2b, 0x81, 4, 0, 34], 48),
        "ECC_NIST_P521" => (&[0x2b, 0x81, 4, 0, 35], 66),
        other => panic!("{other}"),
    };
    let significant: Vec<u8> = scalar.iter().copied().skip_while(|byte| *byte == 0).collect();
    let mut padded = vec![0; len - significant.len()];
    padded.extend(significant);
    let private = der(0x30, &[der(2, &[1]), der(4, &padded)].concat());
    let ec_public_key = [0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    let algorithm = der(0x30, &[der(6, &ec_public_key), der(6, oid)].concat());
    der(0x30, &[der(2, &[0]), algorithm, der(4, &private)].concat())
}

#[test]
fn macs_are_those_of_the_imported_key() {
    let s = service();
    for group in vectors("mac") {
        let wrapping = "RSAES_OAEP_SHA_256";
        let key = import(&s, &group["spec"], "GENERATE_VERIFY_MAC", wrapping, &bytes(&group["key"]));
        for test in group["tests"].as_array().unwrap() {
            let mut request = json!({
                "KeyId": key, "MacAlgorithm": group["algorithm"],
                "Message": b64(&bytes(&test[0])), "Mac": b64(&bytes(&test[1])),
            });
            if test[2] == true {
                assert_eq!(s.ok("VerifyMac", request.clone())["MacValid"], true);
                request.as_object_mut().unwrap().remove("Mac");
                assert_eq!(unb64(&s.ok("GenerateMac", request)["Mac"]), bytes(&test[1]));
            } else {
                assert_eq!(s.fails("VerifyMac", request).0, "KMSInvalidMacException", "{test}");
            }
        }
    }
}

#[test]
fn secrets_are_agreed_on_with_sound_public_keys_only() {
    let s = service();
    for group in vectors("ecdh") {
        let pkcs8 = ec_pkcs8(group["spec"].as_str().unwrap(), &bytes(&group["key"]));
        let key = import(&s, &group["spec"], "KEY_AGREEMENT", "RSA_AES_KEY_WRAP_SHA_256", &pkcs8);
        for test in group["tests"].as_array().unwrap() {
            let public = bytes(&test[0]);
            let request = json!({"KeyId": key, "KeyAgreementAlgorithm": "ECDH", "PublicKey": b64(&public)});
            if test[1].is_null() {
                assert_eq!(s.fails("DeriveSharedSecret", request).0, "ValidationException", "{test}");
            } else {
                let answer = s.ok("DeriveSharedSecret", request);
                assert_eq!(unb64(&answer["SharedSecret"]), bytes(&test[1]), "{test}");
            }
        }
    }
}

#[test]
fn ciphertexts_open_only_as_they_were_made() {
    let s = service();
    for group in vectors("oaep") {
        let wrapping = "RSA_AES_KEY_WRAP_SHA_1";
        let key = import(&s, &group["spec"], "ENCRYPT_DECRYPT", wrapping, &bytes(&group["key"]));
        for test in group["tests"].as_array().unwrap() {
            let ciphertext = bytes(&test[0]);
            if ciphertext.is_empty() {
                continue;
            }
            let request = json!({
                "KeyId": key, "EncryptionAlgorithm": group["algorithm"], "CiphertextBlob": b64(&ciphertext),
            });
            if test[1].is_null() {
                assert_eq!(s.fails("Decrypt", request).0, "InvalidCiphertextException", "{test}");
            } else {
                assert_eq!(unb64(&s.ok("Decrypt", request)["Plaintext"]), bytes(&test[1]), "{test}");
            }
        }
    }
}

#[test]
fn aes_key_wrap_is_undone_only_as_it_was_made() {
    let s = service();
    let key =
        s.key_with(json!({"Origin": "EXTERNAL", "KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}));
    let import = Import::begin(&s, &key, "RSA_AES_KEY_WRAP_SHA_256", "RSA_2048");
    let mut undone = 0;
    for test in vectors("kwp") {
        let mut request = import.request(&key, &[0; 16]);
        let wrapped = import.behind(&bytes(&test[0]), &bytes(&test[1]));
        request["EncryptedKeyMaterial"] = b64(&wrapped).into();
        let found = s.fails("ImportKeyMaterial", request).0;
        // What was unwrapped is no key pair, which is another error than what could not be.
        let is_undone = found == "IncorrectKeyMaterialException";
        assert!(
            is_undone || matches!(&*found, "InvalidCiphertextException" | "ValidationException"),
            "{found}"
        );
        assert_eq!(is_undone, test[2] == true, "{test}");
        undone += usize::from(is_undone);
    }
    assert!(undone > 10, "{undone}");
}

#[test]
fn ml_dsa_signatures_verify_under_the_imported_key() {
    let s = service();
    for group in vectors("ml_dsa") {
        let wrapping = "RSA_AES_KEY_WRAP_SHA_256";
        let key = import(&s, &group["spec"], "SIGN_VERIFY", wrapping, &bytes(&group["key"]));
        for test in group["tests"].as_array().unwrap() {
            let signature = bytes(&test[2]);
            let mut asked = vec![("EXTERNAL_MU", bytes(&test[1]))];
            if !test[0].is_null() {
                asked.push(("RAW", bytes(&test[0])));
            }
            for (kind, message) in asked {
                let mut request = json!({
                    "KeyId": key, "SigningAlgorithm": "ML_DSA_SHAKE_256", "MessageType": kind,
                    "Message": b64(&message), "Signature": b64(&signature),
                });
                assert_eq!(s.ok("Verify", request.clone())["SignatureValid"], true, "{kind}");
                let mut changed = signature.clone();
                changed[100] ^= 1;
                request["Signature"] = b64(&changed).into();
                assert_eq!(s.fails("Verify", request).0, "KMSInvalidSignatureException");
            }
        }
    }
}

#[test]
fn key_pairs_that_are_none_of_the_spec_are_not_taken() {
    let s = service();
    let group = vectors("ecdh").remove(0);
    let pkcs8 = ec_pkcs8("ECC_NIST_P256", &bytes(&group["key"]));
    let refused = |spec: &str, usage: &str, material: &[u8]| {
        let key = s.key_with(json!({"Origin": "EXTERNAL", "KeySpec": spec, "KeyUsage": usage}));
        let wrapping = Import::begin(&s, &key, "RSA_AES_KEY_WRAP_SHA_256", "RSA_2048");
        s.fails("ImportKeyMaterial", wrapping.request(&key, material)).0
    };
    let incorrect = "IncorrectKeyMaterialException";
    assert_eq!(refused("ECC_NIST_P384", "SIGN_VERIFY", &pkcs8), incorrect);
    assert_eq!(refused("RSA_2048", "SIGN_VERIFY", &pkcs8), incorrect);
    assert_eq!(refused("ECC_NIST_P256", "SIGN_VERIFY", &pkcs8[..pkcs8.len() - 1]), incorrect);
    let rsa = bytes(&vectors("oaep").remove(0)["key"]);
    assert_eq!(refused("RSA_3072", "SIGN_VERIFY", &rsa), incorrect);
}

#[test]
fn an_imported_key_pair_stays_the_same() {
    let s = service();
    let groups = vectors("ecdh");
    let pkcs8 = |at: usize| ec_pkcs8(groups[at]["spec"].as_str().unwrap(), &bytes(&groups[at]["key"]));
    let spec = &groups[0]["spec"];
    let key = import(&s, spec, "SIGN_VERIFY", "RSAES_OAEP_SHA_1", &pkcs8(0));
    let public = s.ok("GetPublicKey", json!({"KeyId": key}))["PublicKey"].clone();
    s.ok("DeleteImportedKeyMaterial", json!({"KeyId": key}));
    assert_eq!(s.fails("GetPublicKey", json!({"KeyId": key})).0, "KMSInvalidStateException");
    let import = Import::begin(&s, &key, "RSAES_OAEP_SHA_1", "RSA_2048");
    let other = import.request(&key, &pkcs8(1));
    assert_eq!(s.fails("ImportKeyMaterial", other.clone()).0, "IncorrectKeyMaterialException");
    let mut new = other;
    new["ImportType"] = json!("NEW_KEY_MATERIAL");
    assert_eq!(s.fails("ImportKeyMaterial", new).0, "UnsupportedOperationException");
    s.ok("ImportKeyMaterial", import.request(&key, &pkcs8(0)));
    assert_eq!(s.ok("GetPublicKey", json!({"KeyId": key}))["PublicKey"], public);
    let request = json!({
        "KeyId": key, "Message": b64(b"m"), "SigningAlgorithm": "ECDSA_SHA_256",
    });
    let mut verify = request.clone();
    verify["Signature"] = s.ok("Sign", request)["Signature"].clone();
    s.ok("Verify", verify);
}
