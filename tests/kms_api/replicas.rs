//! Multi-Region keys: replicas, the primary key's privileges, what they share and what is their own.

use kmsfs::kms::{Caller, Clock};
use serde_json::{Value, json};

use crate::harness::{ACCOUNT, REGION, START, Service, arn, b64, failure, root, service, settling, unb64};
use crate::imports::Import;

const EAST: &str = "us-east-1";
const WEST: &str = "us-west-2";

fn at(region: &str) -> Caller {
    Caller { region: region.into(), ..root() }
}

fn arn_at(region: &str, id: &str) -> String {
    format!("arn:aws:kms:{region}:{ACCOUNT}:key/{id}")
}

fn primary(s: &Service) -> String {
    s.key_with(json!({"MultiRegion": true, "Description": "d", "Tags": [{"TagKey": "a", "TagValue": "1"}]}))
}

fn replicate(s: &Service, key: &str, region: &str) -> Value {
    s.ok("ReplicateKey", json!({"KeyId": key, "ReplicaRegion": region}))
}

fn described(s: &Service, region: &str, key: &str) -> Value {
    s.ok_as(&at(region), "DescribeKey", json!({"KeyId": key}))["KeyMetadata"].clone()
}

fn state(s: &Service, region: &str, key: &str) -> Value {
    described(s, region, key)["KeyState"].clone()
}

/// A ciphertext, its key, and the material that made it, as decrypting in the same region tells it.
fn seal(s: &Service, region: &str, key: &str) -> Value {
    let mut sealed = s.ok_as(&at(region), "Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}));
    let opened = s.ok_as(&at(region), "Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
    sealed["KeyMaterialId"] = opened["KeyMaterialId"].clone();
    sealed
}

fn opens(s: &Service, region: &str, sealed: &Value) {
    let opened = s.ok_as(&at(region), "Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
    assert_eq!(unb64(&opened["Plaintext"]), b"x");
    assert_eq!(opened["KeyMaterialId"], sealed["KeyMaterialId"]);
}

#[test]
fn a_replica_shares_id_and_material_and_has_all_else_for_itself() {
    let s = service();
    let key = primary(&s);
    assert!(key.starts_with("mrk-"), "{key}");
    let entry = |region: &str| json!({"Arn": arn_at(region, &key), "Region": region});
    let configuration = |kind: &str, replicas: &[&str]| {
        let replicas: Vec<Value> = replicas.iter().map(|region| entry(region)).collect();
        json!({"MultiRegionKeyType": kind, "PrimaryKey": entry(REGION), "ReplicaKeys": replicas})
    };
    let shown = |region: &str| described(&s, region, &key)["MultiRegionConfiguration"].clone();
    assert_eq!(shown(REGION), configuration("PRIMARY", &[]));
    let made = replicate(&s, &key, EAST);
    let metadata = &made["ReplicaKeyMetadata"];
    assert_eq!(
        (&metadata["KeyState"], &metadata["Enabled"], &metadata["Description"], &metadata["Arn"]),
        (&json!("Creating"), &json!(false), &json!(""), &json!(arn_at(EAST, &key)))
    );
    assert_eq!(metadata["MultiRegionConfiguration"], configuration("REPLICA", &[EAST]));
    assert!(made["ReplicaPolicy"].as_str().unwrap().contains("Enable IAM User Permissions"));
    assert_eq!(made.get("ReplicaTags"), None, "what has no tags tells none");
    assert_eq!(shown(REGION), configuration("PRIMARY", &[EAST]));
    assert_eq!(state(&s, EAST, &key), "Enabled");
    replicate(&s, &key, WEST);
    assert_eq!(shown(EAST), configuration("REPLICA", &[EAST, WEST]));
    for (from, to) in [(REGION, EAST), (EAST, REGION), (EAST, WEST)] {
        let sealed = seal(&s, from, &key);
        assert_eq!(sealed["KeyId"], arn_at(from, &key));
        opens(&s, to, &sealed);
    }
    s.ok("DisableKey", json!({"KeyId": key}));
    opens(&s, EAST, &seal(&s, WEST, &key));
}

#[test]
fn only_a_primary_key_in_good_state_is_replicated_and_once_to_a_region() {
    let s = service();
    let key = primary(&s);
    let request = |region: &str| json!({"KeyId": key, "ReplicaRegion": region});
    replicate(&s, &key, EAST);
    let not_primary = |arn: String| {
        failure("UnsupportedOperationException", &format!("{arn} is not a multi-Region primary key."))
    };
    assert_eq!(s.fails_as(&at(EAST), "ReplicateKey", request(WEST)), not_primary(arn_at(EAST, &key)));
    let plain = s.key();
    let found = s.fails("ReplicateKey", json!({"KeyId": plain, "ReplicaRegion": EAST}));
    assert_eq!(found, not_primary(arn(&plain)));
    for region in [EAST, REGION] {
        assert_eq!(s.fails("ReplicateKey", request(region)).0, "AlreadyExistsException");
    }
    assert_eq!(s.fails("ReplicateKey", request("No Region")).0, "ValidationException");
    s.ok("DisableKey", json!({"KeyId": key}));
    let disabled = failure("DisabledException", &format!("{} is disabled.", arn(&key)));
    assert_eq!(s.fails("ReplicateKey", request(WEST)), disabled);
}

#[test]
fn the_region_of_a_new_replica_gets_a_record_of_its_own() {
    let s = service();
    let key = primary(&s);
    replicate(&s, &key, EAST);
    let records = s.audit.records();
    let made =
        records.iter().find(|record| record["eventName"] == "CreateKey" && record["awsRegion"] == EAST);
    let made = made.expect("a record in the replica's region");
    assert_eq!(made["resources"][0]["ARN"], arn_at(EAST, &key));
    assert_eq!(made["userIdentity"]["type"], "AWSService");
    let asked = records.iter().find(|record| record["eventName"] == "ReplicateKey").unwrap();
    assert_eq!(asked["awsRegion"], REGION);
}

#[test]
fn rotation_is_the_primary_keys_and_reaches_every_replica() {
    let s = service();
    let key = primary(&s);
    replicate(&s, &key, EAST);
    let old = seal(&s, EAST, &key);
    s.ok("RotateKeyOnDemand", json!({"KeyId": key}));
    let new = seal(&s, EAST, &key);
    assert_ne!(old["KeyMaterialId"], new["KeyMaterialId"]);
    assert_eq!(new["KeyMaterialId"], described(&s, REGION, &key)["CurrentKeyMaterialId"]);
    opens(&s, REGION, &new);
    opens(&s, EAST, &old);
    // What comes later has all the material from the start.
    replicate(&s, &key, WEST);
    opens(&s, WEST, &old);
    s.ok("EnableKeyRotation", json!({"KeyId": key, "RotationPeriodInDays": 90}));
    let status = s.ok_as(&at(EAST), "GetKeyRotationStatus", json!({"KeyId": key}));
    assert_eq!(
        (&status["KeyRotationEnabled"], &status["NextRotationDate"]),
        (&json!(true), &json!(START.plus_days(90)))
    );
    for operation in ["EnableKeyRotation", "DisableKeyRotation", "RotateKeyOnDemand"] {
        let (code, message) = s.fails_as(&at(EAST), operation, json!({"KeyId": key}));
        assert_eq!(code, "UnsupportedOperationException", "{operation}");
        assert!(message.ends_with("is not a multi-Region primary key."), "{message}");
    }
    s.clock.advance_days(90);
    assert_eq!(s.kms.run_due(s.clock.now()).rotated, 1);
    assert_ne!(seal(&s, WEST, &key)["KeyMaterialId"], new["KeyMaterialId"]);
    let rotations = s.ok_as(&at(WEST), "ListKeyRotations", json!({"KeyId": key}));
    assert_eq!(rotations["Rotations"].as_array().unwrap().len(), 2);
}

#[test]
fn the_primary_region_moves_with_all_its_privileges() {
    let s = service();
    let key = primary(&s);
    replicate(&s, &key, EAST);
    s.ok("EnableKeyRotation", json!({"KeyId": key}));
    let to = |region: &str| json!({"KeyId": key, "PrimaryRegion": region});
    assert_eq!(s.fails("UpdatePrimaryRegion", to(WEST)).0, "NotFoundException");
    assert_eq!(s.fails("UpdatePrimaryRegion", to(REGION)).0, "UnsupportedOperationException");
    assert_eq!(s.fails_as(&at(EAST), "UpdatePrimaryRegion", to(EAST)).0, "UnsupportedOperationException");
    assert_eq!(s.ok("UpdatePrimaryRegion", to(EAST)), Value::Null);
    for region in [REGION, EAST] {
        let configuration = described(&s, region, &key)["MultiRegionConfiguration"].clone();
        assert_eq!(configuration["PrimaryKey"]["Region"], EAST);
        assert_eq!(configuration["ReplicaKeys"][0]["Region"], REGION);
        let status = s.ok_as(&at(region), "GetKeyRotationStatus", json!({"KeyId": key}));
        assert_eq!(status["KeyRotationEnabled"], true);
    }
    s.ok_as(&at(EAST), "RotateKeyOnDemand", json!({"KeyId": key}));
    s.ok_as(&at(EAST), "ReplicateKey", json!({"KeyId": key, "ReplicaRegion": WEST}));
    opens(&s, REGION, &seal(&s, WEST, &key));
}

#[test]
fn a_primary_key_outlives_its_replicas() {
    let s = service();
    let key = primary(&s);
    replicate(&s, &key, EAST);
    let answer = s.ok("ScheduleKeyDeletion", json!({"KeyId": key, "PendingWindowInDays": 10}));
    let expected =
        json!({"KeyId": arn(&key), "KeyState": "PendingReplicaDeletion", "PendingWindowInDays": 10});
    assert_eq!(answer, expected);
    let found = described(&s, REGION, &key);
    assert_eq!((&found["PendingDeletionWindowInDays"], found.get("DeletionDate")), (&json!(10), None));
    let (code, message) = s.fails("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}));
    assert_eq!(code, "KMSInvalidStateException");
    assert!(message.ends_with("is pending replica deletion."), "{message}");
    opens(&s, EAST, &seal(&s, EAST, &key));
    s.ok_as(&at(EAST), "ScheduleKeyDeletion", json!({"KeyId": key, "PendingWindowInDays": 7}));
    assert_eq!(state(&s, EAST, &key), "PendingDeletion");
    s.clock.advance_days(7);
    assert_eq!(s.kms.run_due(s.clock.now()).deleted, 1);
    let found = described(&s, REGION, &key);
    assert_eq!(
        (&found["KeyState"], &found["DeletionDate"], found.get("PendingDeletionWindowInDays")),
        (&json!("PendingDeletion"), &json!(START.plus_days(17)), None)
    );
    s.ok("CancelKeyDeletion", json!({"KeyId": key}));
    assert_eq!(state(&s, REGION, &key), "Disabled");
    s.ok("EnableKey", json!({"KeyId": key}));
    replicate(&s, &key, EAST);
    s.ok("ScheduleKeyDeletion", json!({"KeyId": key}));
    s.ok("CancelKeyDeletion", json!({"KeyId": key}));
    assert_eq!(described(&s, REGION, &key).get("PendingDeletionWindowInDays"), None);
}

#[test]
fn new_replicas_and_moved_primary_keys_take_their_time_where_that_is_wanted() {
    let s = settling(1000);
    let key = primary(&s);
    replicate(&s, &key, EAST);
    assert_eq!(state(&s, EAST, &key), "Creating");
    let use_it = || s.fails_as(&at(EAST), "Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}));
    let creating = format!("{} is creating.", arn_at(EAST, &key));
    assert_eq!(use_it(), failure("KMSInvalidStateException", &creating));
    let disable = json!({"KeyId": key});
    assert_eq!(
        s.fails_as(&at(EAST), "DisableKey", disable.clone()),
        failure("KMSInvalidStateException", &creating)
    );
    s.clock.advance_millis(1000);
    assert_eq!(state(&s, EAST, &key), "Enabled");
    s.ok("UpdatePrimaryRegion", json!({"KeyId": key, "PrimaryRegion": EAST}));
    for region in [REGION, EAST] {
        let found = described(&s, region, &key);
        assert_eq!((&found["KeyState"], &found["Enabled"]), (&json!("Updating"), &json!(true)));
        opens(&s, region, &seal(&s, region, &key));
        assert_eq!(s.fails_as(&at(region), "DisableKey", disable.clone()).0, "KMSInvalidStateException");
    }
    s.clock.advance_millis(1000);
    s.kms.run_due(s.clock.now());
    s.ok("DisableKey", disable);
}

#[test]
fn imported_material_is_brought_to_each_region() {
    let s = service();
    let key = s.key_with(json!({"MultiRegion": true, "Origin": "EXTERNAL"}));
    let (code, message) = s.fails("ReplicateKey", json!({"KeyId": key, "ReplicaRegion": EAST}));
    assert_eq!(
        (code.as_str(), message),
        ("KMSInvalidStateException", format!("{} is pending import.", arn(&key)))
    );
    let bring = |region: &str, byte: u8, kind: Option<&str>| {
        let import = Import::begin_as(&s, &at(region), &key, "RSAES_OAEP_SHA_256", "RSA_2048");
        let mut request = import.request(&key, &[byte; 32]);
        if let Some(kind) = kind {
            request["ImportType"] = json!(kind);
        }
        s.call(&at(region), "ImportKeyMaterial", &request.to_string())
    };
    bring(REGION, 1, None).unwrap();
    replicate(&s, &key, EAST);
    assert_eq!(state(&s, EAST, &key), "PendingImport");
    assert_eq!(bring(EAST, 2, None).unwrap_err().code, "IncorrectKeyMaterialException");
    bring(EAST, 1, None).unwrap();
    opens(&s, EAST, &seal(&s, REGION, &key));
    // New material begins at the primary key.
    let new = Some("NEW_KEY_MATERIAL");
    assert_eq!(bring(EAST, 2, new).unwrap_err().code, "IncorrectKeyMaterialException");
    bring(REGION, 2, new).unwrap();
    let last = |region: &str| {
        let request = json!({"KeyId": key, "IncludeKeyMaterial": "ALL_KEY_MATERIAL"});
        let listed = s.ok_as(&at(region), "ListKeyRotations", request);
        let entry = listed["Rotations"].as_array().unwrap().last().unwrap().clone();
        (entry["KeyMaterialState"].clone(), entry["ImportState"].clone())
    };
    let missing = json!("PENDING_MULTI_REGION_IMPORT_AND_ROTATION");
    assert_eq!(last(REGION), (missing.clone(), json!("IMPORTED")));
    assert_eq!(last(EAST), (missing, json!("PENDING_IMPORT")));
    assert_eq!(state(&s, EAST, &key), "Enabled");
    assert_eq!(s.fails("RotateKeyOnDemand", json!({"KeyId": key})).0, "KMSInvalidStateException");
    bring(EAST, 2, Some("EXISTING_KEY_MATERIAL")).unwrap();
    assert_eq!(last(EAST), (json!("PENDING_ROTATION"), json!("IMPORTED")));
    s.ok("RotateKeyOnDemand", json!({"KeyId": key}));
    opens(&s, REGION, &seal(&s, EAST, &key));
    // Taken from the primary key before it was in use, it is gone everywhere.
    let waiting = bring(REGION, 3, new).unwrap()["KeyMaterialId"].clone();
    bring(EAST, 3, None).unwrap();
    s.ok("DeleteImportedKeyMaterial", json!({"KeyId": key, "KeyMaterialId": waiting}));
    assert_eq!(last(EAST), (json!("CURRENT"), json!("IMPORTED")));
    // Taken from a replica, it is gone there only.
    s.ok_as(&at(EAST), "DeleteImportedKeyMaterial", json!({"KeyId": key}));
    assert_eq!((state(&s, EAST, &key), state(&s, REGION, &key)), (json!("PendingImport"), json!("Enabled")));
}

#[test]
fn aliases_tags_policies_and_state_are_each_keys_own() {
    let s = service();
    let key = primary(&s);
    let made = s.ok(
        "ReplicateKey",
        json!({"KeyId": key, "ReplicaRegion": EAST, "Description": "there",
               "Tags": [{"TagKey": "b", "TagValue": "2"}]}),
    );
    assert_eq!(made["ReplicaTags"], json!([{"TagKey": "b", "TagValue": "2"}]));
    let tags = |region: &str| s.ok_as(&at(region), "ListResourceTags", json!({"KeyId": key}))["Tags"].clone();
    assert_eq!(tags(REGION), json!([{"TagKey": "a", "TagValue": "1"}]));
    assert_eq!(tags(EAST), made["ReplicaTags"]);
    s.ok_as(&at(EAST), "CreateAlias", json!({"AliasName": "alias/m", "TargetKeyId": key}));
    assert_eq!(s.ok("ListAliases", json!({"KeyId": key}))["Aliases"], json!([]));
    s.ok_as(&at(EAST), "DisableKey", json!({"KeyId": key}));
    assert_eq!((state(&s, EAST, &key), state(&s, REGION, &key)), (json!("Disabled"), json!("Enabled")));
}
