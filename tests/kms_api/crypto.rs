//! Encrypt, Decrypt, ReEncrypt, GenerateDataKey, GenerateRandom.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::harness::{arn, b64, failure, service, unb64};

const NO_KEY: &str = "The ciphertext refers to a customer master key that does not exist, does not exist in this \
                      region, or you are not allowed to access.";
const INCORRECT: &str = "The key ID in the request does not identify a CMK that can perform this operation.";
const DRY_RUN: &str = "The request would have succeeded, but the DryRun option is set.";

#[test]
fn what_was_encrypted_is_decrypted_by_any_name_of_the_key() {
    let s = service();
    let key = s.key();
    s.ok("CreateAlias", json!({"AliasName": "alias/k", "TargetKeyId": key}));
    let alias_arn = crate::harness::alias_arn("alias/k");
    for name in [key.clone(), arn(&key), "alias/k".to_owned(), alias_arn] {
        let sealed = s.ok("Encrypt", json!({"KeyId": name, "Plaintext": b64(b"hello")}));
        assert_eq!(sealed["KeyId"], arn(&key));
        assert_eq!(sealed["EncryptionAlgorithm"], "SYMMETRIC_DEFAULT");
        let opened = s.ok("Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"], "KeyId": name}));
        assert_eq!(unb64(&opened["Plaintext"]), b"hello");
        assert_eq!(opened["KeyId"], arn(&key));
        assert_eq!(opened["KeyMaterialId"].as_str().unwrap().len(), 64);
    }
}

#[test]
fn two_encryptions_of_the_same_plaintext_differ() {
    let s = service();
    let key = s.key();
    let seal = || s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}))["CiphertextBlob"].clone();
    assert_ne!(seal(), seal());
}

#[test]
fn the_limit_of_4096_bytes_is_exact() {
    let s = service();
    let key = s.key();
    let sealed = s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(&[7; 4096])}));
    let opened = s.ok("Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
    assert_eq!(unb64(&opened["Plaintext"]), [7; 4096]);
    let above = s.fails("Encrypt", json!({"KeyId": key, "Plaintext": b64(&[7; 4097])}));
    let message = "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: \
                   Member must have length less than or equal to 4096";
    assert_eq!(above, failure("ValidationException", message));
    let below = s.fails("Encrypt", json!({"KeyId": key, "Plaintext": ""}));
    let message = "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: \
                   Member must have length greater than or equal to 1";
    assert_eq!(below, failure("ValidationException", message));
}

#[test]
fn the_context_must_be_the_same_in_whatever_order() {
    let s = service();
    let key = s.key();
    let sealed = s.ok(
        "Encrypt",
        json!({
        "KeyId": key, "Plaintext": b64(b"x"), "EncryptionContext": {"a": "1", "b": "2"}}),
    );
    let open = |context: Value| {
        let body = json!({"CiphertextBlob": sealed["CiphertextBlob"], "EncryptionContext": context});
        s.call(&crate::harness::root(), "Decrypt", &body.to_string())
    };
    assert!(open(json!({"b": "2", "a": "1"})).is_ok());
    for other in
        [json!({"a": "1"}), json!({}), json!({"A": "1", "b": "2"}), json!({"a": "1", "b": "2", "c": ""})]
    {
        let failure = open(other).unwrap_err();
        assert_eq!((failure.code.as_str(), failure.message.as_str()), ("InvalidCiphertextException", ""));
    }
    let failure = s.fails("Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
    assert_eq!(failure.0, "InvalidCiphertextException");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn only_the_context_of_encryption_decrypts(
        given in prop::collection::btree_map("[ab]{0,2}", "[ab]{0,2}", 0..4),
        tried in prop::collection::btree_map("[ab]{0,2}", "[ab]{0,2}", 0..4),
    ) {
        let s = service();
        let key = s.key();
        let sealed = s.ok("Encrypt", json!({
            "KeyId": key, "Plaintext": b64(b"x"), "EncryptionContext": given}));
        let body = json!({"CiphertextBlob": sealed["CiphertextBlob"], "EncryptionContext": tried});
        let opened = s.call(&crate::harness::root(), "Decrypt", &body.to_string());
        prop_assert_eq!(opened.is_ok(), given == tried);
    }

    #[test]
    fn a_ciphertext_with_a_flipped_bit_never_decrypts(at in 0_usize..(72 + 8) * 8) {
        let s = service();
        let key = s.key();
        let sealed = s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"8 bytes!")}));
        let mut blob = unb64(&sealed["CiphertextBlob"]);
        blob[at / 8] ^= 1 << (at % 8);
        let (code, message) = s.fails("Decrypt", json!({"CiphertextBlob": b64(&blob)}));
        // A flip in the key id names a key that does not exist.
        prop_assert!(
            (code == "InvalidCiphertextException" && message.is_empty())
                || (code == "AccessDeniedException" && message == NO_KEY)
        );
    }
}

#[test]
fn a_ciphertext_of_another_key_is_the_wrong_one_for_this_key() {
    let s = service();
    let (one, other) = (s.key(), s.key());
    let blob = s.ok("Encrypt", json!({"KeyId": one, "Plaintext": b64(b"x")}))["CiphertextBlob"].clone();
    let wrong = s.fails("Decrypt", json!({"CiphertextBlob": blob, "KeyId": other}));
    assert_eq!(wrong, failure("IncorrectKeyException", INCORRECT));
    let wrong = s.fails(
        "ReEncrypt",
        json!({
        "CiphertextBlob": blob, "SourceKeyId": other, "DestinationKeyId": other}),
    );
    assert_eq!(wrong, failure("IncorrectKeyException", INCORRECT));
    let garbage = s.fails("Decrypt", json!({"CiphertextBlob": b64(b"garbage"), "KeyId": one}));
    assert_eq!(garbage, failure("InvalidCiphertextException", ""));
    let absent = s.fails("Decrypt", json!({"KeyId": one}));
    let message = "1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: \
                   Member must not be null";
    assert_eq!(absent, failure("ValidationException", message));
}

#[test]
fn a_ciphertext_of_a_destroyed_key_refers_to_nothing() {
    let s = service();
    let key = s.key();
    let blob = s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}))["CiphertextBlob"].clone();
    s.ok("ScheduleKeyDeletion", json!({"KeyId": key, "PendingWindowInDays": 7}));
    s.clock.advance_days(7);
    assert_eq!(s.kms.run_due(kmsfs::kms::Clock::now(&*s.clock)).deleted, 1);
    assert_eq!(s.fails("Decrypt", json!({"CiphertextBlob": blob})), failure("AccessDeniedException", NO_KEY));
}

#[test]
fn reencrypt_moves_a_ciphertext_to_another_key_and_context() {
    let s = service();
    let (from, to) = (s.key(), s.key());
    let old =
        s.ok("Encrypt", json!({"KeyId": from, "Plaintext": b64(b"x"), "EncryptionContext": {"a": "1"}}));
    let moved = s.ok(
        "ReEncrypt",
        json!({
            "CiphertextBlob": old["CiphertextBlob"],
            "SourceEncryptionContext": {"a": "1"},
            "DestinationKeyId": to,
            "DestinationEncryptionContext": {"b": "2"},
        }),
    );
    assert_eq!((&moved["SourceKeyId"], &moved["KeyId"]), (&json!(arn(&from)), &json!(arn(&to))));
    assert!(moved.get("Plaintext").is_none());
    assert_ne!(moved["SourceKeyMaterialId"], moved["DestinationKeyMaterialId"]);
    let opened =
        s.ok("Decrypt", json!({"CiphertextBlob": moved["CiphertextBlob"], "EncryptionContext": {"b": "2"}}));
    assert_eq!((unb64(&opened["Plaintext"]), &opened["KeyId"]), (b"x".to_vec(), &json!(arn(&to))));
    let wrong =
        s.fails("ReEncrypt", json!({"CiphertextBlob": old["CiphertextBlob"], "DestinationKeyId": to}));
    assert_eq!(wrong, failure("InvalidCiphertextException", ""));
    s.ok("DisableKey", json!({"KeyId": from}));
    let stopped = s.fails("ReEncrypt", json!({
        "CiphertextBlob": old["CiphertextBlob"], "SourceEncryptionContext": {"a": "1"}, "DestinationKeyId": to}));
    assert_eq!(stopped, failure("DisabledException", &format!("{} is disabled.", arn(&from))));
}

#[test]
fn data_keys_have_the_length_that_was_asked_for() {
    let s = service();
    let key = s.key();
    for (asked, length) in [
        (json!({"KeySpec": "AES_256"}), 32),
        (json!({"KeySpec": "AES_128"}), 16),
        (json!({"NumberOfBytes": 1}), 1),
        (json!({"NumberOfBytes": 1024}), 1024),
    ] {
        let mut body = asked;
        body["KeyId"] = json!(key);
        body["EncryptionContext"] = json!({"purpose": "test"});
        let made = s.ok("GenerateDataKey", body.clone());
        let plain = unb64(&made["Plaintext"]);
        assert_eq!(plain.len(), length);
        let open =
            json!({"CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": {"purpose": "test"}});
        assert_eq!(unb64(&s.ok("Decrypt", open)["Plaintext"]), plain);
        let blind = s.ok("GenerateDataKeyWithoutPlaintext", body);
        assert!(blind.get("Plaintext").is_none());
        let open =
            json!({"CiphertextBlob": blind["CiphertextBlob"], "EncryptionContext": {"purpose": "test"}});
        assert_eq!(unb64(&s.ok("Decrypt", open)["Plaintext"]).len(), length);
    }
}

#[test]
fn data_keys_need_exactly_one_way_to_say_how_long() {
    let s = service();
    let key = s.key();
    let message = "Please specify either number of bytes or key spec.";
    for operation in ["GenerateDataKey", "GenerateDataKeyWithoutPlaintext"] {
        for body in [json!({"KeyId": key}), json!({"KeyId": key, "KeySpec": "AES_256", "NumberOfBytes": 32})]
        {
            assert_eq!(s.fails(operation, body), failure("ValidationException", message));
        }
    }
}

#[test]
fn random_bytes_come_in_the_number_asked_for() {
    let s = service();
    for length in [1, 12, 1024] {
        let made = s.ok("GenerateRandom", json!({"NumberOfBytes": length}));
        assert_eq!(unb64(&made["Plaintext"]).len(), length);
    }
    assert_eq!(
        s.fails("GenerateRandom", json!({})),
        failure("ValidationException", "NumberOfBytes is required.")
    );
    let constraint = |value: i64, bound: &str| {
        format!(
            "1 validation error detected: Value '{value}' at 'numberOfBytes' failed to satisfy constraint: \
             Member must have value {bound}"
        )
    };
    for (value, bound) in [(0, "greater than or equal to 1"), (1025, "less than or equal to 1024")] {
        let found = s.fails("GenerateRandom", json!({"NumberOfBytes": value}));
        assert_eq!(found, failure("ValidationException", &constraint(value, bound)));
    }
}

#[test]
fn a_dry_run_says_what_would_have_been_and_does_nothing() {
    let s = service();
    let key = s.key();
    let blob = s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}))["CiphertextBlob"].clone();
    let calls = [
        ("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x"), "DryRun": true})),
        ("Decrypt", json!({"CiphertextBlob": blob, "DryRun": true})),
        ("Decrypt", json!({"KeyId": key, "DryRun": true, "DryRunModifiers": ["IGNORE_CIPHERTEXT"]})),
        ("ReEncrypt", json!({"CiphertextBlob": blob, "DestinationKeyId": key, "DryRun": true})),
        ("GenerateDataKey", json!({"KeyId": key, "KeySpec": "AES_256", "DryRun": true})),
        ("GenerateDataKeyWithoutPlaintext", json!({"KeyId": key, "KeySpec": "AES_256", "DryRun": true})),
    ];
    for (operation, body) in &calls {
        assert_eq!(s.fails(operation, body.clone()), failure("DryRunOperationException", DRY_RUN));
    }
    let garbage = json!({"CiphertextBlob": b64(b"garbage"), "KeyId": key, "DryRun": true});
    assert_eq!(s.fails("Decrypt", garbage).0, "InvalidCiphertextException");
    s.ok("DisableKey", json!({"KeyId": key}));
    for (operation, body) in calls {
        assert_eq!(s.fails(operation, body).0, "DisabledException");
    }
}

#[test]
fn an_algorithm_of_another_kind_of_key_is_refused() {
    let s = service();
    let key = s.key();
    let wrong = s.fails(
        "Encrypt",
        json!({
        "KeyId": key, "Plaintext": b64(b"x"), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}),
    );
    let message = "Algorithm RSAES_OAEP_SHA_256 is incompatible with key spec SYMMETRIC_DEFAULT.";
    assert_eq!(wrong, failure("InvalidKeyUsageException", message));
}

#[test]
fn a_recipient_is_not_passed_over_in_silence() {
    let s = service();
    let key = s.key();
    let recipient = json!({"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": b64(b"x")});
    let body = json!({"KeyId": key, "KeySpec": "AES_256", "Recipient": recipient});
    assert_eq!(s.fails("GenerateDataKey", body).0, "UnsupportedOperationException");
}
