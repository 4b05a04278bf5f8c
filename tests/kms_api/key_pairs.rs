//! Key pairs: what they are, sign, agree on, encapsulate, encrypt, and refuse.

use std::sync::Arc;

use kmsfs::crypto::{RootKey, SealKey};
use kmsfs::kms::Clock;
use kmsfs::kms::store::{MemoryStore, Store, Table};
use serde_json::{Value, json};

use crate::harness::{Service, arn, b64, failure, over, service, unb64};

const DRY: (&str, &str) =
    ("DryRunOperationException", "The request would have succeeded, but the DryRun option is set.");

fn pair(s: &Service, spec: &str, usage: &str) -> String {
    s.key_with(json!({"KeySpec": spec, "KeyUsage": usage}))
}

fn sign_request(key: &str, algorithm: &str, kind: &str, message: &[u8]) -> Value {
    json!({"KeyId": key, "SigningAlgorithm": algorithm, "MessageType": kind, "Message": b64(message)})
}

/// Signs, verifies, and verifies that nothing else does.
fn check_signature(s: &Service, key: &str, algorithm: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let request = sign_request(key, algorithm, kind, message);
    let made = s.ok("Sign", request.clone());
    assert_eq!((&made["KeyId"], &made["SigningAlgorithm"]), (&json!(arn(key)), &json!(algorithm)));
    let mut verify = request.clone();
    verify["Signature"] = made["Signature"].clone();
    let expected = json!({"KeyId": arn(key), "SignatureValid": true, "SigningAlgorithm": algorithm});
    assert_eq!(s.ok("Verify", verify.clone()), expected, "{algorithm} {kind}");
    let mut bad = unb64(&made["Signature"]);
    bad[10] ^= 1;
    verify["Signature"] = b64(&bad).into();
    for dry in [false, true] {
        verify["DryRun"] = dry.into();
        assert_eq!(s.fails("Verify", verify.clone()), failure("KMSInvalidSignatureException", ""));
    }
    let mut dry = request;
    dry["DryRun"] = true.into();
    assert_eq!(s.fails("Sign", dry), failure(DRY.0, DRY.1));
    unb64(&made["Signature"])
}

#[test]
fn rsa_keys_sign_with_each_of_their_algorithms() {
    let s = service();
    let key = pair(&s, "RSA_2048", "SIGN_VERIFY");
    let algorithms = [
        "RSASSA_PKCS1_V1_5_SHA_256",
        "RSASSA_PKCS1_V1_5_SHA_384",
        "RSASSA_PKCS1_V1_5_SHA_512",
        "RSASSA_PSS_SHA_256",
        "RSASSA_PSS_SHA_384",
        "RSASSA_PSS_SHA_512",
    ];
    let described = &s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"];
    assert_eq!(described["SigningAlgorithms"], json!(algorithms));
    assert_eq!(described["EncryptionAlgorithms"], Value::Null);
    for (algorithm, digest) in algorithms.into_iter().zip([32, 48, 64].into_iter().cycle()) {
        assert_eq!(check_signature(&s, &key, algorithm, "RAW", b"message").len(), 256);
        check_signature(&s, &key, algorithm, "DIGEST", &[7; 64][..digest]);
        let found = s.fails("Sign", sign_request(&key, algorithm, "DIGEST", b"not a digest"));
        let message = format!("Digest is invalid length for algorithm {algorithm}.");
        assert_eq!(found, failure("ValidationException", &message));
    }
    let found = s.fails("Sign", sign_request(&key, "RSASSA_PSS_SHA_256", "EXTERNAL_MU", &[7; 64]));
    let message = "Message type EXTERNAL_MU is incompatible with key spec RSA_2048.";
    assert_eq!(found, failure("ValidationException", message));
}

#[test]
fn every_curve_signs_with_its_algorithm_and_no_other() {
    let s = service();
    for (spec, algorithm, digest) in [
        ("ECC_NIST_P256", "ECDSA_SHA_256", 32),
        ("ECC_NIST_P384", "ECDSA_SHA_384", 48),
        ("ECC_NIST_P521", "ECDSA_SHA_512", 64),
        ("ECC_SECG_P256K1", "ECDSA_SHA_256", 32),
    ] {
        let key = pair(&s, spec, "SIGN_VERIFY");
        let described = &s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"];
        assert_eq!(described["SigningAlgorithms"], json!([algorithm]));
        check_signature(&s, &key, algorithm, "RAW", b"message");
        check_signature(&s, &key, algorithm, "DIGEST", &[7; 64][..digest]);
        let other = if algorithm == "ECDSA_SHA_384" { "ECDSA_SHA_512" } else { "ECDSA_SHA_384" };
        let found = s.fails("Sign", sign_request(&key, other, "RAW", b"m"));
        let message = format!("Algorithm {other} is incompatible with key spec {spec}.");
        assert_eq!(found, failure("InvalidKeyUsageException", &message));
    }
}

#[test]
fn ed25519_takes_messages_and_its_prehashed_form_takes_digests() {
    let s = service();
    let key = pair(&s, "ECC_NIST_EDWARDS25519", "SIGN_VERIFY");
    let described = &s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"];
    assert_eq!(described["SigningAlgorithms"], json!(["ED25519_SHA_512", "ED25519_PH_SHA_512"]));
    assert_eq!(check_signature(&s, &key, "ED25519_SHA_512", "RAW", b"message").len(), 64);
    assert_eq!(check_signature(&s, &key, "ED25519_PH_SHA_512", "DIGEST", &[7; 64]).len(), 64);
    assert_eq!(unb64(&s.ok("GetPublicKey", json!({"KeyId": key}))["PublicKey"]).len(), 44);
    for (algorithm, kind) in [("ED25519_SHA_512", "DIGEST"), ("ED25519_PH_SHA_512", "RAW")] {
        let found = s.fails("Sign", sign_request(&key, algorithm, kind, &[7; 64]));
        let message = format!("Message type {kind} is incompatible with algorithm {algorithm}.");
        assert_eq!(found, failure("ValidationException", &message));
    }
    let found = s.fails("Sign", sign_request(&key, "ED25519_PH_SHA_512", "DIGEST", &[7; 63]));
    let message = "Digest is invalid length for algorithm ED25519_PH_SHA_512.";
    assert_eq!(found, failure("ValidationException", message));
}

#[test]
fn ml_dsa_signs_messages_and_their_representative() {
    let s = service();
    for (spec, public, signature) in
        [("ML_DSA_44", 1334, 2420), ("ML_DSA_65", 1974, 3309), ("ML_DSA_87", 2614, 4627)]
    {
        let key = pair(&s, spec, "SIGN_VERIFY");
        let described = &s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"];
        assert_eq!(described["SigningAlgorithms"], json!(["ML_DSA_SHAKE_256"]));
        assert_eq!(unb64(&s.ok("GetPublicKey", json!({"KeyId": key}))["PublicKey"]).len(), public);
        for (kind, message) in [("RAW", &b"message"[..]), ("EXTERNAL_MU", &[7; 64])] {
            let one = check_signature(&s, &key, "ML_DSA_SHAKE_256", kind, message);
            assert_eq!(one.len(), signature);
            let two = check_signature(&s, &key, "ML_DSA_SHAKE_256", kind, message);
            assert_ne!(one, two, "signatures are hedged");
        }
        let found = s.fails("Sign", sign_request(&key, "ML_DSA_SHAKE_256", "DIGEST", &[7; 64]));
        let message = format!("Message type DIGEST is incompatible with key spec {spec}.");
        assert_eq!(found, failure("ValidationException", &message));
        for wrong in [1, 63, 65] {
            let found =
                s.fails("Sign", sign_request(&key, "ML_DSA_SHAKE_256", "EXTERNAL_MU", &vec![7; wrong]));
            let message = "External Mu is invalid length for algorithm ML_DSA_SHAKE_256.";
            assert_eq!(found, failure("ValidationException", message));
        }
    }
}

#[test]
fn a_key_is_used_for_its_purpose_only() {
    let s = service();
    let rsa = pair(&s, "RSA_2048", "ENCRYPT_DECRYPT");
    let (signing, agreeing) =
        (pair(&s, "ECC_NIST_P256", "SIGN_VERIFY"), pair(&s, "ECC_NIST_P256", "KEY_AGREEMENT"));
    let kem = pair(&s, "ML_KEM_512", "ENCAPSULATE_DECAPSULATE");
    let sign = |key: &str| sign_request(key, "ECDSA_SHA_256", "RAW", b"m");
    let derive = |key: &str| json!({"KeyId": key, "KeyAgreementAlgorithm": "ECDH", "PublicKey": b64(b"x")});
    let encapsulate = |key: &str| json!({"KeyId": key, "EncapsulationAlgorithm": "ML_KEM"});
    let encrypt = |key: &str| json!({"KeyId": key, "Plaintext": b64(b"m")});
    for (operation, key, usage, body) in [
        ("Sign", &rsa, "ENCRYPT_DECRYPT", sign(&rsa)),
        ("Sign", &agreeing, "KEY_AGREEMENT", sign(&agreeing)),
        ("DeriveSharedSecret", &signing, "SIGN_VERIFY", derive(&signing)),
        ("Encapsulate", &signing, "SIGN_VERIFY", encapsulate(&signing)),
        ("Encrypt", &signing, "SIGN_VERIFY", encrypt(&signing)),
        ("Encrypt", &kem, "ENCAPSULATE_DECAPSULATE", encrypt(&kem)),
        ("GenerateDataKey", &signing, "SIGN_VERIFY", json!({"KeyId": signing, "KeySpec": "AES_256"})),
    ] {
        let message = format!("{} key usage is {usage} which is not valid for {operation}.", arn(key));
        assert_eq!(s.fails(operation, body), failure("InvalidKeyUsageException", &message));
    }
    let found = s.fails("GenerateDataKey", json!({"KeyId": rsa, "KeySpec": "AES_256"}));
    let message = "You cannot generate a data key with an asymmetric CMK";
    assert_eq!(found, failure("InvalidKeyUsageException", message));
    let status = s.ok("GetKeyRotationStatus", json!({"KeyId": rsa}));
    assert_eq!(status, json!({"KeyRotationEnabled": false, "KeyId": arn(&rsa)}));
    for operation in ["EnableKeyRotation", "RotateKeyOnDemand", "ListKeyRotations"] {
        let found = s.fails(operation, json!({"KeyId": rsa}));
        assert_eq!(found, failure("UnsupportedOperationException", ""));
    }
}

#[test]
fn a_public_key_is_shown_with_what_it_is_for() {
    let s = service();
    let key = pair(&s, "RSA_2048", "ENCRYPT_DECRYPT");
    let shown = s.ok("GetPublicKey", json!({"KeyId": key}));
    let expected = json!({
        "KeyId": arn(&key),
        "PublicKey": shown["PublicKey"],
        "CustomerMasterKeySpec": "RSA_2048",
        "KeySpec": "RSA_2048",
        "KeyUsage": "ENCRYPT_DECRYPT",
        "EncryptionAlgorithms": ["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"],
    });
    assert_eq!(shown, expected);
    assert_eq!(unb64(&shown["PublicKey"]).len(), 294);
    let agreeing = s.ok("GetPublicKey", json!({"KeyId": pair(&s, "ECC_NIST_P256", "KEY_AGREEMENT")}));
    assert_eq!(
        (unb64(&agreeing["PublicKey"]).len(), &agreeing["KeyAgreementAlgorithms"]),
        (91, &json!(["ECDH"]))
    );
    let symmetric = s.key();
    let found = s.fails("GetPublicKey", json!({"KeyId": symmetric}));
    assert_eq!(found, failure("UnsupportedOperationException", ""));
    s.ok("ScheduleKeyDeletion", json!({"KeyId": key}));
    let pending = failure("KMSInvalidStateException", &format!("{} is pending deletion.", arn(&key)));
    assert_eq!(s.fails("GetPublicKey", json!({"KeyId": key})), pending);
}

#[test]
fn rsa_encrypts_within_its_limits_and_binds_no_context() {
    let s = service();
    let key = pair(&s, "RSA_2048", "ENCRYPT_DECRYPT");
    for (algorithm, most) in [("RSAES_OAEP_SHA_1", 214), ("RSAES_OAEP_SHA_256", 190)] {
        let encrypt = |len: usize| json!({"KeyId": key, "EncryptionAlgorithm": algorithm, "Plaintext": b64(&vec![5; len])});
        let sealed = s.ok("Encrypt", encrypt(most));
        assert_eq!(
            (&sealed["KeyId"], &sealed["EncryptionAlgorithm"]),
            (&json!(arn(&key)), &json!(algorithm))
        );
        let blob = &sealed["CiphertextBlob"];
        let decrypt = json!({"KeyId": key, "EncryptionAlgorithm": algorithm, "CiphertextBlob": blob});
        let opened = s.ok("Decrypt", decrypt.clone());
        assert_eq!(unb64(&opened["Plaintext"]), vec![5; most]);
        assert_eq!(opened["KeyMaterialId"], Value::Null);
        let message = format!(
            "Algorithm {algorithm} and key spec RSA_2048 cannot encrypt data larger than {most} bytes."
        );
        assert_eq!(s.fails("Encrypt", encrypt(most + 1)), failure("ValidationException", &message));
        let mut with_context = decrypt.clone();
        with_context["EncryptionContext"] = json!({"a": "b"});
        let message = "EncryptionContext is not supported when encrypting/decrypting with asymmetric CMKs.";
        assert_eq!(s.fails("Decrypt", with_context), failure("ValidationException", message));
        let mut changed = decrypt.clone();
        changed["CiphertextBlob"] = b64(&[9; 256]).into();
        assert_eq!(s.fails("Decrypt", changed), failure("InvalidCiphertextException", ""));
        let mut nameless = decrypt;
        nameless.as_object_mut().unwrap().remove("KeyId");
        assert_eq!(s.fails("Decrypt", nameless), failure("ValidationException", "KeyId must not be null"));
    }
    let found = s.fails("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"m")}));
    let message = "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048.";
    assert_eq!(found, failure("InvalidKeyUsageException", message));
    let symmetric = s.key();
    let found = s.fails(
        "Encrypt",
        json!({"KeyId": symmetric, "Plaintext": b64(b"m"), "EncryptionAlgorithm": "RSAES_OAEP_SHA_1"}),
    );
    let message = "Algorithm RSAES_OAEP_SHA_1 is incompatible with key spec SYMMETRIC_DEFAULT.";
    assert_eq!(found, failure("InvalidKeyUsageException", message));
}

#[test]
fn a_ciphertext_moves_between_a_symmetric_key_and_a_key_pair() {
    let s = service();
    let (symmetric, rsa) = (s.key(), pair(&s, "RSA_2048", "ENCRYPT_DECRYPT"));
    let sealed = s.ok("Encrypt", json!({"KeyId": symmetric, "Plaintext": b64(b"secret")}));
    let there = s.ok(
        "ReEncrypt",
        json!({"CiphertextBlob": sealed["CiphertextBlob"], "DestinationKeyId": rsa,
               "DestinationEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}),
    );
    assert_eq!(there["SourceEncryptionAlgorithm"], "SYMMETRIC_DEFAULT");
    assert_eq!(there["DestinationEncryptionAlgorithm"], "RSAES_OAEP_SHA_256");
    assert!(there["SourceKeyMaterialId"].is_string() && there["DestinationKeyMaterialId"].is_null());
    let back = s.ok(
        "ReEncrypt",
        json!({"CiphertextBlob": there["CiphertextBlob"], "SourceKeyId": rsa, "DestinationKeyId": symmetric,
               "SourceEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}),
    );
    let opened = s.ok("Decrypt", json!({"CiphertextBlob": back["CiphertextBlob"]}));
    assert_eq!(unb64(&opened["Plaintext"]), b"secret");
    let hmac = pair(&s, "HMAC_224", "GENERATE_VERIFY_MAC");
    let blob = &sealed["CiphertextBlob"];
    let incorrect = failure(
        "IncorrectKeyException",
        "The key ID in the request does not identify a CMK that can perform this operation.",
    );
    assert_eq!(s.fails("Decrypt", json!({"CiphertextBlob": blob, "KeyId": hmac})), incorrect);
    let moved = json!({"CiphertextBlob": blob, "SourceKeyId": hmac, "DestinationKeyId": hmac});
    assert_eq!(s.fails("ReEncrypt", moved), incorrect);
    let dry = json!({"SourceKeyId": symmetric, "DestinationKeyId": symmetric, "DryRun": true,
                     "DryRunModifiers": ["IGNORE_CIPHERTEXT"]});
    assert_eq!(s.fails("ReEncrypt", dry), failure(DRY.0, DRY.1));
}

#[test]
fn two_keys_agree_on_a_secret() {
    let s = service();
    for (spec, len) in [("ECC_NIST_P256", 32), ("ECC_NIST_P384", 48), ("ECC_NIST_P521", 66)] {
        let (one, two) = (pair(&s, spec, "KEY_AGREEMENT"), pair(&s, spec, "KEY_AGREEMENT"));
        let public = |key: &str| s.ok("GetPublicKey", json!({"KeyId": key}))["PublicKey"].clone();
        let derive = |key: &str, peer: Value| json!({"KeyId": key, "KeyAgreementAlgorithm": "ECDH", "PublicKey": peer});
        let secret = s.ok("DeriveSharedSecret", derive(&one, public(&two)));
        assert_eq!(
            secret["SharedSecret"],
            s.ok("DeriveSharedSecret", derive(&two, public(&one)))["SharedSecret"]
        );
        assert_eq!(unb64(&secret["SharedSecret"]).len(), len);
        assert_eq!(
            (&secret["KeyOrigin"], &secret["KeyAgreementAlgorithm"]),
            (&json!("AWS_KMS"), &json!("ECDH"))
        );
        let found = s.fails("DeriveSharedSecret", derive(&one, b64(b"InvalidPublicKey").into()));
        assert_eq!(found, failure("ValidationException", ""));
        let mut dry = derive(&one, public(&two));
        dry["DryRun"] = true.into();
        assert_eq!(s.fails("DeriveSharedSecret", dry), failure(DRY.0, DRY.1));
    }
}

#[test]
fn an_encapsulated_secret_is_recovered_and_a_wrong_one_is_not_told_from_it() {
    let s = service();
    for (spec, len) in [("ML_KEM_512", 768), ("ML_KEM_768", 1088), ("ML_KEM_1024", 1568)] {
        let key = pair(&s, spec, "ENCAPSULATE_DECAPSULATE");
        let described = &s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"];
        assert_eq!(described["EncapsulationAlgorithms"], json!(["ML_KEM"]));
        let made = s.ok("Encapsulate", json!({"KeyId": key, "EncapsulationAlgorithm": "ML_KEM"}));
        let mut blob = unb64(&made["SharedSecretCiphertextBlob"]);
        assert_eq!((blob.len(), unb64(&made["SharedSecret"]).len()), (len, 32));
        let open = |blob: &[u8]| json!({"KeyId": key, "EncapsulationAlgorithm": "ML_KEM", "SharedSecretCiphertextBlob": b64(blob)});
        assert_eq!(s.ok("Decapsulate", open(&blob))["SharedSecret"], made["SharedSecret"]);
        assert_eq!(s.fails("Decapsulate", open(&blob[1..])), failure("InvalidCiphertextException", ""));
        blob[0] ^= 1;
        assert_ne!(s.ok("Decapsulate", open(&blob))["SharedSecret"], made["SharedSecret"]);
    }
}

#[test]
fn a_data_key_pair_comes_plain_and_sealed() {
    let s = service();
    let key = s.key();
    for (spec, private) in [
        ("RSA_2048", 1200..1230),
        ("ECC_NIST_P256", 138..139),
        ("ECC_NIST_P384", 185..186),
        ("ECC_NIST_P521", 241..242),
        ("ECC_SECG_P256K1", 135..136),
        ("ECC_NIST_EDWARDS25519", 48..49),
        ("ML_KEM_512", 86..87),
        ("ML_KEM_768", 86..87),
        ("ML_KEM_1024", 86..87),
    ] {
        let request = json!({"KeyId": key, "KeyPairSpec": spec, "EncryptionContext": {"a": "b"}});
        let made = s.ok("GenerateDataKeyPair", request.clone());
        assert_eq!((&made["KeyId"], &made["KeyPairSpec"]), (&json!(arn(&key)), &json!(spec)));
        let len = unb64(&made["PrivateKeyPlaintext"]).len();
        assert!(private.contains(&len), "{spec}: {len}");
        let open =
            json!({"CiphertextBlob": made["PrivateKeyCiphertextBlob"], "EncryptionContext": {"a": "b"}});
        let opened = s.ok("Decrypt", open);
        assert_eq!(opened["Plaintext"], made["PrivateKeyPlaintext"]);
        assert_eq!(opened["KeyMaterialId"], made["KeyMaterialId"]);
        let sealed_only = s.ok("GenerateDataKeyPairWithoutPlaintext", request.clone());
        assert!(sealed_only["PrivateKeyPlaintext"].is_null() && sealed_only["PublicKey"].is_string());
        assert_ne!(sealed_only["PublicKey"], made["PublicKey"]);
        let mut dry = request;
        dry["DryRun"] = true.into();
        assert_eq!(s.fails("GenerateDataKeyPair", dry), failure(DRY.0, DRY.1));
    }
    let found = s.fails("GenerateDataKeyPair", json!({"KeyId": key, "KeyPairSpec": "SM2"}));
    assert_eq!(
        found,
        failure("UnsupportedOperationException", "KeyPairSpec SM2 is not supported in this Region")
    );
}

#[test]
fn the_last_use_of_a_key_is_told_with_its_record() {
    let s = service();
    let key = s.key();
    let usage = |s: &Service| s.ok("GetKeyLastUsage", json!({"KeyId": key}));
    let unused = usage(&s);
    assert_eq!(unused["KeyLastUsage"], json!({}));
    assert_eq!(
        (&unused["TrackingStartDate"], &unused["KeyCreationDate"]),
        (&json!(1_700_000_000.25), &json!(1_700_000_000.25))
    );
    s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"m")}));
    s.ok("DescribeKey", json!({"KeyId": key}));
    s.fails("Decrypt", json!({"KeyId": key, "CiphertextBlob": b64(b"m")}));
    let used = &usage(&s)["KeyLastUsage"];
    let records = s.audit.records();
    let record = records.iter().find(|record| record["eventName"] == "Encrypt").unwrap();
    let expected = json!({"Operation": "Encrypt", "Timestamp": 1_700_000_000.25,
                          "CloudTrailEventId": record["eventID"], "KmsRequestId": record["requestID"]});
    assert_eq!(*used, expected);
}

#[test]
fn the_last_use_of_a_key_outlives_the_daemon() {
    let (first, sealing) = (RootKey::random(), SealKey::from_key_file(&[1; 32], &[2; 16]));
    let sealed = sealing.seal(&[0; 12], b"", &first);
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let start = || over(Arc::clone(&store), sealing.open(&[0; 12], b"", &sealed).unwrap());
    let s = start();
    let (key, gone) = (s.key(), s.key());
    for key in [&key, &gone] {
        s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"m")}));
    }
    let usage = |s: &Service| s.ok("GetKeyLastUsage", json!({"KeyId": key}));
    let before = usage(&s);
    s.kms.store_last_usage().unwrap();
    let again = start();
    again.clock.advance_days(3);
    assert_eq!(usage(&again), before);
    again.ok("ScheduleKeyDeletion", json!({"KeyId": gone, "PendingWindowInDays": 7}));
    again.clock.advance_days(8);
    assert_eq!(again.kms.run_due(again.clock.now()).deleted, 1);
    again.kms.store_last_usage().unwrap();
    assert_eq!(store.load(Table::LastUse).unwrap().len(), 1, "of a destroyed key nothing is kept");
}

#[test]
fn evidence_of_an_enclave_is_refused_clearly() {
    let s = service();
    let recipient = json!({"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": b64(b"x")});
    let body = json!({"KeyId": s.key(), "KeyPairSpec": "ECC_NIST_P256", "Recipient": recipient});
    let (code, message) = s.fails("GenerateDataKeyPair", body);
    assert_eq!(code, "UnsupportedOperationException");
    assert!(message.contains("attestation"), "{message}");
    let (code, _) = s.fails("GenerateRandom", json!({"NumberOfBytes": 8, "Recipient": recipient}));
    assert_eq!(code, "UnsupportedOperationException");
}
