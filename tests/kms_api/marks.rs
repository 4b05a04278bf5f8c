//! Marks: numbers that only rise, for whoever may decrypt a ciphertext.

use std::sync::Arc;

use kmsfs::crypto::{RootKey, SealKey};
use kmsfs::kms::store::{MemoryStore, Store};
use serde_json::{Value, json};

use crate::harness::{over, service, user};

const ADVANCE: &str = "KmsdAdmin.AdvanceMark";

fn request(blob: &Value, context: &str, value: Option<i64>) -> Value {
    let mut request = json!({ "CiphertextBlob": blob, "EncryptionContext": { "owner": context } });
    if let Some(value) = value {
        request["Value"] = value.into();
    }
    request
}

#[test]
fn a_mark_only_rises_and_belongs_to_a_key_and_a_context() {
    let s = service();
    let (key, other) = (s.key(), s.key());
    let blob_of = |key: &str, owner: &str| {
        let context = json!({ "owner": owner });
        let body = json!({ "KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context });
        s.ok("GenerateDataKeyWithoutPlaintext", body)["CiphertextBlob"].clone()
    };
    let (a, b, foreign) = (blob_of(&key, "a"), blob_of(&key, "b"), blob_of(&other, "a"));
    assert_eq!(s.ok(ADVANCE, request(&a, "a", None)), json!({ "Value": 0 }));
    assert_eq!(s.ok(ADVANCE, request(&a, "a", Some(5))), json!({ "Value": 5 }));
    assert_eq!(s.ok(ADVANCE, request(&a, "a", Some(5))), json!({ "Value": 5 }));
    assert_eq!(s.fails(ADVANCE, request(&a, "a", Some(4))).0, "ConflictException");
    assert_eq!(s.ok(ADVANCE, request(&blob_of(&key, "a"), "a", None)), json!({ "Value": 5 }));
    assert_eq!(s.ok(ADVANCE, request(&b, "b", None)), json!({ "Value": 0 }));
    assert_eq!(s.ok(ADVANCE, request(&foreign, "a", None)), json!({ "Value": 0 }), "of another key");
    // A context alone is no ciphertext, and another's ciphertext does not open with it.
    assert_eq!(s.fails(ADVANCE, request(&b, "a", Some(9))).0, "InvalidCiphertextException");
    assert_eq!(s.fails(ADVANCE, request(&a, "a", Some(0))).0, "ValidationException");
    s.ok("DisableKey", json!({ "KeyId": key }));
    assert_eq!(s.fails(ADVANCE, request(&a, "a", None)).0, "DisabledException");
    assert_eq!(
        s.fails_as(&user("mallory"), ADVANCE, request(&foreign, "a", Some(9))).0,
        "AccessDeniedException"
    );
}

#[test]
fn a_mark_outlives_the_daemon() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let sealing = SealKey::from_key_file(&[7; 32], &[0; 16]);
    let sealed = sealing.seal(&[0; 12], b"", &RootKey::random());
    let start = || over(Arc::clone(&store), sealing.open(&[0; 12], b"", &sealed).unwrap());
    let first = start();
    let body = json!({ "KeyId": first.key(), "KeySpec": "AES_256", "EncryptionContext": { "owner": "a" } });
    let blob = first.ok("GenerateDataKeyWithoutPlaintext", body)["CiphertextBlob"].clone();
    first.ok(ADVANCE, request(&blob, "a", Some(3)));
    drop(first);
    assert_eq!(start().ok(ADVANCE, request(&blob, "a", None)), json!({ "Value": 3 }));
}
