//! Keys: made, shown, listed, switched, destroyed.

use std::sync::Arc;

use kmsfs::crypto::{RootKey, SealKey};
use kmsfs::kms::Clock;
use kmsfs::kms::store::{Change, MemoryStore, Store, Table};
use serde_json::{Value, json};

use crate::harness::{START, Service, arn, b64, failure, over, service, unb64};

#[test]
fn a_new_key_is_what_was_asked_for() {
    let s = service();
    let made = s.ok("CreateKey", json!({"Description": "mine", "Tags": [{"TagKey": "a", "TagValue": ""}]}));
    let key = &made["KeyMetadata"];
    let id = key["KeyId"].as_str().unwrap();
    let expected = json!({
        "AWSAccountId": "111122223333",
        "KeyId": id,
        "Arn": arn(id),
        "CreationDate": 1_700_000_000.25,
        "Enabled": true,
        "Description": "mine",
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeyState": "Enabled",
        "Origin": "AWS_KMS",
        "KeyManager": "CUSTOMER",
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
        "KeySpec": "SYMMETRIC_DEFAULT",
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
        "MultiRegion": false,
        "CurrentKeyMaterialId": key["CurrentKeyMaterialId"],
    });
    assert_eq!(*key, expected);
    assert_eq!(s.ok("DescribeKey", json!({"KeyId": id})), made);
    let tags = s.ok("ListResourceTags", json!({"KeyId": id}));
    assert_eq!(tags, json!({"Tags": [{"TagKey": "a", "TagValue": ""}], "Truncated": false}));
}

#[test]
fn kinds_that_do_not_go_together_or_are_not_served_are_refused() {
    let s = service();
    let usage = "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.";
    for (body, code, message) in [
        (json!({"KeySpec": "RSA_2048"}), "ValidationException", usage),
        (json!({"KeySpec": "HMAC_256"}), "ValidationException", usage),
        (
            json!({"KeySpec": "RSA_2048", "KeyUsage": "KEY_AGREEMENT"}),
            "ValidationException",
            "KeyUsage KEY_AGREEMENT is not compatible with KeySpec RSA_2048",
        ),
        (
            json!({"KeyUsage": "SIGN_VERIFY"}),
            "ValidationException",
            "KeyUsage SIGN_VERIFY is not compatible with KeySpec SYMMETRIC_DEFAULT",
        ),
        (
            json!({"KeySpec": "SM2", "KeyUsage": "SIGN_VERIFY"}),
            "UnsupportedOperationException",
            "KeySpec SM2 is not supported in this Region",
        ),
        (
            json!({"Origin": "AWS_CLOUDHSM"}),
            "UnsupportedOperationException",
            "Origin AWS_CLOUDHSM is not supported.",
        ),
    ] {
        assert_eq!(s.fails("CreateKey", body), failure(code, message));
    }
    assert_eq!(s.ok("ListKeys", json!({}))["Keys"], json!([]), "nothing was made");
}

#[test]
fn a_key_that_is_not_there_is_said_so_in_the_words_of_the_service() {
    let s = service();
    let absent = "1234abcd-12ab-34cd-56ef-1234567890ab";
    let mrk = "mrk-d3b95762d3b95762d3b95762d3b95762";
    for (name, message) in [
        (absent.to_owned(), format!("Key '{}' does not exist", arn(absent))),
        (arn(absent), format!("Key '{}' does not exist", arn(absent))),
        (mrk.to_owned(), format!("Key '{}' does not exist", arn(mrk))),
        ("fake-key-id".to_owned(), "Invalid keyId 'fake-key-id'".to_owned()),
        (
            "134f2428cec14b25a1ae9048164dba47".to_owned(),
            "Invalid keyId '134f2428cec14b25a1ae9048164dba47'".to_owned(),
        ),
        ("mrk-fake-key-id".to_owned(), "Invalid keyId 'mrk-fake-key-id'".to_owned()),
        ("alias/none".to_owned(), "Alias arn:aws:kms:local:111122223333:alias/none is not found.".to_owned()),
        (
            format!("arn:aws:kms:ap-southeast-1:111122223333:key/{absent}"),
            "Invalid arn ap-southeast-1".to_owned(),
        ),
    ] {
        assert_eq!(s.fails("DescribeKey", json!({"KeyId": name})), failure("NotFoundException", &message));
    }
}

#[test]
fn a_key_of_another_account_is_denied_and_never_said_to_be_absent() {
    let s = service();
    let foreign = "arn:aws:kms:local:999999999999:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let message = format!(
        "User: arn:aws:iam::111122223333:root is not authorized to perform: kms:DescribeKey on resource: {foreign} \
         because the resource does not exist in this Region, no resource-based policies allow access, or a \
         resource-based policy explicitly denies access"
    );
    let found = s.fails("DescribeKey", json!({"KeyId": foreign}));
    assert_eq!(found, failure("AccessDeniedException", &message));
}

#[test]
fn operations_that_take_no_alias_refuse_one() {
    let s = service();
    let key = s.key();
    s.ok("CreateAlias", json!({"AliasName": "alias/k", "TargetKeyId": key}));
    for operation in ["EnableKey", "DisableKey", "ScheduleKeyDeletion", "GetKeyPolicy", "ListResourceTags"] {
        let found = s.fails(operation, json!({"KeyId": "alias/k"}));
        let message = "Key Aliases are not supported for this operation.";
        assert_eq!(found, failure("InvalidArnException", message), "{operation}");
        let found = s.fails(operation, json!({"KeyId": crate::harness::alias_arn("alias/none")}));
        assert_eq!(found.0, "InvalidArnException", "{operation}");
    }
}

#[test]
fn keys_are_listed_in_pages() {
    let s = service();
    let mut made: Vec<String> = (0..7).map(|_| s.key()).collect();
    made.sort();
    let mut seen = Vec::new();
    let mut body = json!({"Limit": 3});
    loop {
        let page = s.ok("ListKeys", body.clone());
        let keys = page["Keys"].as_array().unwrap().clone();
        assert!(keys.len() <= 3);
        for key in &keys {
            let id = key["KeyId"].as_str().unwrap().to_owned();
            assert_eq!(key["KeyArn"], arn(&id));
            seen.push(id);
        }
        assert_eq!(page["Truncated"].as_bool().unwrap(), page.get("NextMarker").is_some());
        let Some(marker) = page.get("NextMarker") else { break };
        body["Marker"] = marker.clone();
    }
    assert_eq!(seen, made);
    assert_eq!(s.fails("ListKeys", json!({"Marker": "!"})).0, "InvalidMarkerException");
}

#[test]
fn a_disabled_key_does_nothing_until_it_is_enabled() {
    let s = service();
    let key = s.key();
    let blob = s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}))["CiphertextBlob"].clone();
    assert_eq!(s.ok("DisableKey", json!({"KeyId": key})), Value::Null);
    assert_eq!(s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"]["Enabled"], false);
    let message = format!("{} is disabled.", arn(&key));
    for (operation, body) in [
        ("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")})),
        ("Decrypt", json!({"CiphertextBlob": blob})),
        ("ReEncrypt", json!({"CiphertextBlob": blob, "DestinationKeyId": key})),
        ("GenerateDataKey", json!({"KeyId": key, "KeySpec": "AES_256"})),
        ("GenerateDataKeyWithoutPlaintext", json!({"KeyId": key, "KeySpec": "AES_256"})),
        ("EnableKeyRotation", json!({"KeyId": key})),
        ("DisableKeyRotation", json!({"KeyId": key})),
        ("RotateKeyOnDemand", json!({"KeyId": key})),
    ] {
        assert_eq!(s.fails(operation, body), failure("DisabledException", &message), "{operation}");
    }
    s.ok("UpdateKeyDescription", json!({"KeyId": key, "Description": "still"}));
    s.ok("EnableKey", json!({"KeyId": key}));
    s.ok("Decrypt", json!({"CiphertextBlob": blob}));
}

#[test]
fn a_key_pending_deletion_can_only_be_looked_at_and_taken_back() {
    let s = service();
    let key = s.key();
    s.ok("CreateAlias", json!({"AliasName": "alias/k", "TargetKeyId": key}));
    let scheduled = s.ok("ScheduleKeyDeletion", json!({"KeyId": key}));
    let date = START.plus_days(30);
    assert_eq!(
        scheduled,
        json!({"KeyId": arn(&key), "KeyState": "PendingDeletion", "PendingWindowInDays": 30, "DeletionDate": date}),
    );
    let message = format!("{} is pending deletion.", arn(&key));
    for (operation, body) in [
        ("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")})),
        ("EnableKey", json!({"KeyId": key})),
        ("DisableKey", json!({"KeyId": key})),
        ("ScheduleKeyDeletion", json!({"KeyId": key})),
        ("UpdateKeyDescription", json!({"KeyId": key, "Description": ""})),
        ("TagResource", json!({"KeyId": key, "Tags": []})),
        ("UntagResource", json!({"KeyId": key, "TagKeys": []})),
        ("CreateAlias", json!({"AliasName": "alias/other", "TargetKeyId": key})),
        ("UpdateAlias", json!({"AliasName": "alias/k", "TargetKeyId": key})),
        ("EnableKeyRotation", json!({"KeyId": key})),
        ("RotateKeyOnDemand", json!({"KeyId": key})),
    ] {
        assert_eq!(s.fails(operation, body), failure("KMSInvalidStateException", &message), "{operation}");
    }
    for operation in
        ["DescribeKey", "GetKeyPolicy", "ListKeyPolicies", "ListResourceTags", "GetKeyRotationStatus"]
    {
        s.ok(operation, json!({"KeyId": key}));
    }
    assert_eq!(s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"]["DeletionDate"], json!(date));
    assert_eq!(s.ok("CancelKeyDeletion", json!({"KeyId": key})), json!({"KeyId": arn(&key)}));
    let metadata = s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"].clone();
    assert_eq!((&metadata["KeyState"], metadata.get("DeletionDate")), (&json!("Disabled"), None));
    let again = s.fails("CancelKeyDeletion", json!({"KeyId": key}));
    let message = format!("{} is not pending deletion.", arn(&key));
    assert_eq!(again, failure("KMSInvalidStateException", &message));
}

#[test]
fn the_waiting_time_has_its_bounds() {
    let s = service();
    let key = s.key();
    for days in [1, 6, 31, 365] {
        let message = format!("PendingWindowInDays should be between 7 and 30, but it is {days}");
        let found = s.fails("ScheduleKeyDeletion", json!({"KeyId": key, "PendingWindowInDays": days}));
        assert_eq!(found, failure("ValidationException", &message));
    }
    s.ok("ScheduleKeyDeletion", json!({"KeyId": key, "PendingWindowInDays": 7}));
}

#[test]
fn a_key_whose_time_is_over_is_destroyed_with_its_material_and_names() {
    let s = service();
    let (key, kept) = (s.key(), s.key());
    s.ok("RotateKeyOnDemand", json!({"KeyId": key}));
    s.ok("CreateAlias", json!({"AliasName": "alias/k", "TargetKeyId": key}));
    s.ok("ScheduleKeyDeletion", json!({"KeyId": key, "PendingWindowInDays": 7}));
    s.clock.advance_days(6);
    let early = s.kms.run_due(s.clock.now());
    assert_eq!((early.deleted, early.next), (0, Some(START.plus_days(7))));
    assert_eq!(s.store.load(Table::Material).unwrap().len(), 3);
    s.clock.advance_days(1);
    let due = s.kms.run_due(s.clock.now());
    assert_eq!((due.deleted, due.failed, due.next), (1, 0, None));
    assert_eq!(s.audit.records().last().unwrap()["eventName"], "DeleteKey");
    assert_eq!(s.fails("DescribeKey", json!({"KeyId": key})).0, "NotFoundException");
    assert_eq!(s.fails("DescribeKey", json!({"KeyId": "alias/k"})).0, "NotFoundException");
    for (table, rows) in [(Table::Material, 1), (Table::Key, 1), (Table::Alias, 0)] {
        assert_eq!(s.store.load(table).unwrap().len(), rows, "{table:?}");
    }
    s.ok("DescribeKey", json!({"KeyId": kept}));
}

#[test]
fn everything_is_there_after_a_restart() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let sealing = SealKey::from_key_file(&[7; 32], &[0; 16]);
    let sealed = sealing.seal(&[0; 12], b"", &RootKey::random());
    let start = || over(Arc::clone(&store), sealing.open(&[0; 12], b"", &sealed).unwrap());
    let first = start();
    let key = first.key_with(json!({"Description": "d"}));
    first.ok("CreateAlias", json!({"AliasName": "alias/k", "TargetKeyId": key}));
    first.ok("EnableKeyRotation", json!({"KeyId": key, "RotationPeriodInDays": 90}));
    let blob = first.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}))["CiphertextBlob"].clone();
    first.ok("RotateKeyOnDemand", json!({"KeyId": key}));
    let read = |s: &Service| {
        ["DescribeKey", "GetKeyPolicy", "GetKeyRotationStatus", "ListKeyRotations", "ListResourceTags"]
            .map(|operation| s.ok(operation, json!({"KeyId": key})))
    };
    let before = read(&first);
    drop(first);
    let second = start();
    assert_eq!(read(&second), before);
    second.ok("DescribeKey", json!({"KeyId": "alias/k"}));
    assert_eq!(unb64(&second.ok("Decrypt", json!({"CiphertextBlob": blob}))["Plaintext"]), b"x");
}

#[test]
fn material_that_does_not_open_is_an_internal_error_that_tells_nothing() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let sealing = SealKey::from_key_file(&[7; 32], &[0; 16]);
    let sealed = sealing.seal(&[0; 12], b"", &RootKey::random());
    let start = || over(Arc::clone(&store), sealing.open(&[0; 12], b"", &sealed).unwrap());
    let key = start().key();
    let row = store.load(Table::Material).unwrap().remove(0);
    let mut body = row.body;
    *body.last_mut().unwrap() ^= 1;
    store.commit(&[Change::Put { table: Table::Material, id: row.id, body }]).unwrap();
    let found = start().fails("GenerateDataKey", json!({"KeyId": key, "KeySpec": "AES_256"}));
    assert_eq!(found, failure("KMSInternalException", ""));
}
