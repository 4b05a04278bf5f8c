//! Stores of older versions, and stores that somebody else changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::kmsd_support::{Kmsd, assert_fails, assert_ok, kmsd};

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
    let users = kmsd(&["iam", "--socket", daemon.socket().to_str().unwrap(), "list-users"], None);
    assert_ok(&users);
    assert!(String::from_utf8_lossy(&users.stdout).contains("alice"), "{users:?}");
    // It is written in the form of today, and opens again.
    daemon.create_key();
    assert_ok(&daemon.stop());
    daemon.start();
    assert_eq!(open(&expected["after"]), json!("YWZ0ZXIgcm90YXRpb24="));
}

#[test]
fn a_backup_of_a_running_daemon_restores_elsewhere() {
    let daemon = Kmsd::running();
    let key = daemon.create_key();
    daemon.ok("CreateAlias", &json!({"AliasName": "alias/kept", "TargetKeyId": key}));
    let sealed = daemon.ok("Encrypt", &json!({"KeyId": key, "Plaintext": "aGVsbG8="}));
    let (state, file) = (daemon.state(), daemon.base.join("backup"));
    let (state, path) = (state.to_str().unwrap(), file.to_str().unwrap());
    let backup = || kmsd(&["backup", "--dir", state, "--to", path], None);
    assert_ok(&backup());
    assert_fails(&backup(), 9, "name a new file");
    daemon.ok("DeleteAlias", &json!({"AliasName": "alias/kept"}));
    let bytes = fs::read(&file).unwrap();
    assert!(!bytes.windows(10).any(|window| window == b"alias/kept"), "what is in it cannot be read");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let other = Kmsd::bare();
    let target = other.state();
    let restore = |from: &Path| {
        kmsd(&["restore", "--dir", target.to_str().unwrap(), "--from", from.to_str().unwrap()], None)
    };
    let mut bad = bytes.clone();
    *bad.last_mut().unwrap() ^= 1;
    let damaged = other.base.join("damaged");
    fs::write(&damaged, bad).unwrap();
    assert_fails(&restore(&damaged), 8, "not a backup of kmsd, cut short, or changed");
    assert_ok(&restore(&file));
    assert_fails(&restore(&file), 3, "initialised already");
    other.start();
    let opened = other.ok("Decrypt", &json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
    assert_eq!(opened["Plaintext"], json!("aGVsbG8="));
    other.ok("DescribeKey", &json!({"KeyId": "alias/kept"}));

    assert_ok(&daemon.stop());
    fs::remove_file(&file).unwrap();
    assert_ok(&backup());
    assert!(fs::metadata(&file).unwrap().len() > 0);
}

#[test]
fn a_row_put_back_in_the_database_is_named_at_the_next_start() {
    let daemon = Kmsd::running();
    let key = daemon.create_key();
    assert_ok(&daemon.stop());
    let path = daemon.state().join("store.db");
    let row = |database: &rusqlite::Connection| -> (Vec<u8>, Vec<u8>) {
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        database.query_row("SELECT body, mac FROM row WHERE tbl = 3", [], read).unwrap()
    };
    let enabled = row(&rusqlite::Connection::open(&path).unwrap());
    daemon.start();
    daemon.ok("DisableKey", &json!({"KeyId": key}));
    assert_ok(&daemon.stop());
    let database = rusqlite::Connection::open(&path).unwrap();
    let (body, mac) = enabled;
    database
        .execute("UPDATE row SET body = ?1, mac = ?2 WHERE tbl = 3", rusqlite::params![body, mac])
        .unwrap();
    drop(database);
    assert_fails(
        &daemon.serve(&[], None),
        7,
        &format!("row \"{key}\" of table Key was put back to an older state"),
    );
}

#[test]
fn a_seed_makes_at_each_start_what_is_missing_then() {
    let daemon = Kmsd::initialised();
    let seed = daemon.base.join("seed.toml");
    let one = "[[keys]]\nid = \"1234abcd-12ab-34cd-56ef-1234567890ab\"\naliases = [\"alias/one\"]\n";
    let user = "[[users]]\nname = \"app\"\naccess_keys = [{ id = \"AKIDAPP000000000\", secret = \"a secret of some length\" }]\n";
    let two = "[[keys]]\naliases = [\"alias/two\"]\n";
    let daemon = daemon.with(&["--seed", seed.to_str().unwrap()]);
    let started = |text: &str| {
        fs::write(&seed, text).unwrap();
        daemon.start();
        let listed = daemon.ok("ListAliases", &json!({}))["Aliases"].clone();
        let alias = |entry: &Value| (entry["AliasName"].clone(), entry["TargetKeyId"].clone());
        let aliases: Vec<_> = listed.as_array().unwrap().iter().map(alias).collect();
        let keys = daemon.ok("ListKeys", &json!({}))["Keys"].as_array().unwrap().len();
        // Naming it in a grant tells whether the user is there.
        let grant = json!({"KeyId": "1234abcd-12ab-34cd-56ef-1234567890ab", "Operations": ["Decrypt"], "Name": "g",
            "GranteePrincipal": "arn:aws:iam::000000000000:user/app"});
        let (status, _) = daemon.call("CreateGrant", &grant);
        assert_ok(&daemon.stop());
        (aliases, keys, status == 200)
    };
    let first = started(one);
    assert_eq!((first.0.len(), first.1, first.2), (1, 1, false));
    assert_eq!(started(one), first, "nothing is missing");
    let whole = [user, one, two].concat();
    let second = started(&whole);
    assert_eq!((second.0.len(), second.1, second.2), (2, 2, true));
    assert_eq!(second.0[0], first.0[0]);
    assert_eq!(started(&whole), second, "nothing is missing");
    // A contradiction is told although all that is named is there.
    fs::write(&seed, format!("region = \"elsewhere\"\n{whole}")).unwrap();
    assert_fails(&daemon.serve(&[], None), 8, "elsewhere");
}
