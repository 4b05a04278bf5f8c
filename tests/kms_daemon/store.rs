//! Stores of older versions, and stores that somebody else changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::kmsd_support::{Kmsd, assert_ok};

/// A state directory as the first version left it: keys in several states, aliases, a user, an audit log.
const STORE_1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/store-1");

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
            fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

/// A daemon on a copy of the old store, not started.
fn old_store() -> (Kmsd, Value) {
    let daemon = Kmsd::bare();
    copy_tree(Path::new(STORE_1), &daemon.state());
    let (key, expected) = (daemon.state().join("key"), daemon.state().join("expected.json"));
    let values = serde_json::from_str(&fs::read_to_string(&expected).unwrap()).unwrap();
    fs::remove_file(expected).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    let seal = format!("keyfile:{}", key.display());
    (daemon.with(&["--seal", &seal]), values)
}

#[test]
fn a_store_of_the_first_version_opens_with_all_that_is_in_it() {
    let (daemon, expected) = old_store();
    daemon.start();
    let open = |blob: &Value| {
        daemon.ok("Decrypt", &json!({"CiphertextBlob": blob, "EncryptionContext": expected["context"]}))["Plaintext"]
            .clone()
    };
    assert_eq!(open(&expected["before"]), json!("YmVmb3JlIHJvdGF0aW9u"));
    assert_eq!(open(&expected["after"]), json!("YWZ0ZXIgcm90YXRpb24="));
    let state =
        |key: &Value| daemon.ok("DescribeKey", &json!({"KeyId": key}))["KeyMetadata"]["KeyState"].clone();
    assert_eq!(state(&json!("alias/seeded")), json!("Enabled"));
    assert_eq!(state(&expected["disabled"]), json!("Disabled"));
    assert_eq!(state(&expected["cancelled"]), json!("Disabled"));
    assert_eq!(state(&json!("alias/second")), json!("Disabled"));
    let seeded = json!({"KeyId": "1234abcd-12ab-34cd-56ef-1234567890ab"});
    let rotation = daemon.ok("GetKeyRotationStatus", &seeded);
    assert_eq!(rotation["RotationPeriodInDays"], json!(100));
    let rotations = daemon.ok("ListKeyRotations", &seeded);
    assert_eq!(rotations["Rotations"][0]["RotationType"], json!("ON_DEMAND"));
    assert_eq!(daemon.ok("ListResourceTags", &seeded)["Tags"][0]["TagKey"], json!("team"));
    let users = daemon.ok("KmsdAdmin.ListUsers", &json!({}));
    assert_eq!(users["Users"][0]["UserName"], json!("alice"));
    // It is written in the form of today, and opens again.
    daemon.create_key();
    assert_ok(&daemon.stop());
    daemon.start();
    assert_eq!(open(&expected["after"]), json!("YWZ0ZXIgcm90YXRpb24="));
}
