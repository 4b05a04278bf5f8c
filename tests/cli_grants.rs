//! The grants by which the mount of an attached volume uses its keys: made, limited, retired, and collected after a kill.
#![allow(clippy::unwrap_used)]

mod kmsd_support;
mod programs;

use std::fs;
use std::path::{Path, PathBuf};

use kmsd_support::{Http, request_bytes};
use programs::{Desk, Said, eventually, run};
use serde_json::{Value, json};

fn volume(desk: &Desk, line: &str) -> Said {
    run(desk.command_of(&format!("volume {line}")).env("KMSFS_STATE_DIR", desk.path("registry")))
}

/// A volume `v` under `alias/k`, and where it will be mounted.
fn with_volume(label: &str) -> (Desk, String, PathBuf) {
    let desk = Desk::new(label);
    let key = desk.key("k");
    volume(&desk, "create v --key alias/k").ok();
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    desk.adopt(mnt.clone());
    (desk, key, mnt)
}

fn grants(desk: &Desk, key: &str) -> Vec<Value> {
    let mut http = Http::unix(&desk.path("kmsd.sock"));
    let (status, answer) = http.call("ListGrants", &json!({ "KeyId": key }));
    assert_eq!(status, 200, "{answer}");
    answer["Grants"].as_array().unwrap().clone()
}

/// Ends the mount as a crash does, and takes what is left of it away.
fn kill(desk: &Desk, mnt: &Path) {
    desk.kill_mount();
    desk.kmsfs("umount {mnt} --lazy");
    eventually("the mount point is free", || fs::read_dir(mnt).is_ok());
}

#[test]
fn attach_makes_a_grant_for_this_volume_alone_and_detach_retires_it() {
    let (desk, key, mnt) = with_volume("grants");
    assert!(grants(&desk, &key).is_empty());
    volume(&desk, "attach v {mnt}").ok();
    fs::write(mnt.join("file"), "data").unwrap();
    let described = volume(&desk, "describe v --json").json();
    let made = grants(&desk, &key);
    assert_eq!(made.len(), 1, "{made:?}");
    let subset = &made[0]["Constraints"]["EncryptionContextSubset"];
    assert_eq!(subset, &json!({ "kmsfs:volume": described["volume"]["volume_id"] }));
    let principal = made[0]["GranteePrincipal"].as_str().unwrap();
    assert!(principal.contains(":assumed-role/aws:kmsfs-mount/"), "{principal}");
    let operations = made[0]["Operations"].to_string();
    assert!(operations.contains("Decrypt") && !operations.contains("CreateGrant"), "{operations}");
    volume(&desk, "detach v").ok();
    assert!(grants(&desk, &key).is_empty());
    let entry = volume(&desk, "describe v --json").json();
    assert!(entry["volume"]["attachment"].is_null(), "{entry}");
}

#[test]
fn whoever_revokes_the_grant_takes_the_keys_from_the_mount() {
    let (desk, key, mnt) = with_volume("grants-revoke");
    volume(&desk, "attach v {mnt}").ok();
    fs::write(mnt.join("file"), "data").unwrap();
    let id = grants(&desk, &key)[0]["GrantId"].as_str().unwrap().to_owned();
    let mut http = Http::unix(&desk.path("kmsd.sock"));
    let (status, answer) = http.call("RevokeGrant", &json!({ "KeyId": key, "GrantId": id }));
    assert_eq!(status, 200, "{answer}");
    eventually("the file is refused", || fs::read(mnt.join("file")).is_err());
    // The operator's own right, by which it was attached, is not the mount's.
    volume(&desk, "detach v").ok();
    volume(&desk, "attach v {mnt} --own-right").ok();
    assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "data");
    assert!(grants(&desk, &key).is_empty());
}

#[test]
fn a_killed_mount_leaves_a_grant_that_gc_and_the_next_attach_retire() {
    let (desk, key, mnt) = with_volume("grants-kill");
    volume(&desk, "attach v {mnt}").ok();
    assert!(volume(&desk, "gc --json").ok().contains("\"retired\": 0"), "it is in use");
    kill(&desk, &mnt);
    let left = grants(&desk, &key)[0]["GranteePrincipal"].clone();
    volume(&desk, "attach v {mnt}").ok();
    let made = grants(&desk, &key);
    assert!(made.len() == 1 && made[0]["GranteePrincipal"] != left, "{made:?}");
    kill(&desk, &mnt);
    // The daemon is away: nothing is lost, and nothing is forgotten.
    desk.stop_kmsd();
    volume(&desk, "gc").fails(1, "volumes have some left");
    desk.start_kmsd();
    assert!(volume(&desk, "gc --json").ok().contains("\"retired\": 1"));
    assert!(grants(&desk, &key).is_empty());
    volume(&desk, "attach v {mnt}").ok();
    volume(&desk, "detach v").ok();
}

#[test]
fn a_grant_whose_making_was_cut_short_is_found_by_its_grantee() {
    let (desk, key, mnt) = with_volume("grants-cut");
    volume(&desk, "attach v {mnt}").ok();
    kill(&desk, &mnt);
    // As if the kill had come between the making of the grant and the note of its number.
    let path = desk.path("registry/volumes/v.json");
    let mut entry: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    entry["attachment"]["grants"][0].as_object_mut().unwrap().remove("grant_id").unwrap();
    fs::write(&path, entry.to_string()).unwrap();
    volume(&desk, "delete v --yes").ok();
    assert!(grants(&desk, &key).is_empty(), "a volume that goes takes its grants along");
}

#[test]
fn a_key_that_joins_an_attached_volume_gets_a_grant_too() {
    let (desk, _, mnt) = with_volume("grants-more");
    let other = desk.key("other");
    volume(&desk, "attach v {mnt}").ok();
    fs::create_dir(mnt.join("dir")).unwrap();
    desk.kmsfs("default {mnt/dir} --key alias/other").ok();
    fs::write(mnt.join("dir/file"), "data").unwrap();
    assert_eq!(grants(&desk, &other).len(), 1);
    volume(&desk, "detach v").ok();
    assert!(grants(&desk, &other).is_empty());
    volume(&desk, "attach v {mnt}").ok();
    assert_eq!(fs::read_to_string(mnt.join("dir/file")).unwrap(), "data");
    assert_eq!(grants(&desk, &other).len(), 1);
}

#[test]
fn with_a_key_that_cannot_be_used_nobody_is_sent_to_ask_for_rights() {
    let (desk, _key, _mnt) = with_volume("grants-disabled");
    desk.kmsfs("key disable alias/k").ok();
    let said = volume(&desk, "attach v {mnt}").fails(4, "is disabled");
    assert!(!said.err.contains("--own-right"), "{said:?}");
}

#[test]
fn who_may_not_make_grants_is_told_how_to_go_on() {
    let (desk, key, _mnt) = with_volume("grants-refused");
    let policy = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Resource": "*",
        "Principal": {"AWS": "arn:aws:iam::000000000000:root"}, "NotAction": "kms:CreateGrant"}]});
    fs::write(desk.path("policy.json"), policy.to_string()).unwrap();
    desk.kmsfs("key policy put alias/k {policy.json} --bypass-lockout-check").ok();
    volume(&desk, "attach v {mnt}").fails(4, "kms:CreateGrant");
    assert!(volume(&desk, "describe v --json").json()["volume"]["attachment"].is_null());
    volume(&desk, "attach v {mnt} --own-right").ok();
    assert!(grants(&desk, &key).is_empty());
}

#[test]
fn nobody_but_the_service_speaks_for_a_mount() {
    let (desk, key, mnt) = with_volume("grants-untrusted");
    let describe = |principal: &str| {
        let mut http = Http::unix(&desk.path("kmsd.sock"));
        let headers = [("X-Kms-Via-Service", "kmsfs"), ("X-Kms-On-Behalf-Of", principal)];
        let body = json!({ "KeyId": key }).to_string();
        http.send(&request_bytes("DescribeKey", &headers, body.as_bytes()));
        http.receive().json().to_string()
    };
    let principal = "arn:aws:sts::000000000000:assumed-role/aws:kmsfs-mount/00.11";
    let said = describe(principal);
    assert!(said.contains(principal) && said.contains("not authorized"), "a mount without grants: {said}");
    let said = describe("arn:aws:iam::000000000000:root");
    assert!(said.contains("neither the id of a user nor the principal of a mount"), "{said}");
    desk.stop_kmsd();
    fs::write(desk.path("map.toml"), "[services]\nkmsfs = [\"3999999998\"]\n").unwrap();
    desk.start_kmsd_with(&["--map", desk.path("map.toml").to_str().unwrap()]);
    let said = describe(principal);
    assert!(said.contains("Service principal not trusted"), "{said}");
    // Whoever is not the service mounts by its own right.
    volume(&desk, "attach v {mnt}").ok();
    fs::write(mnt.join("file"), "data").unwrap();
    assert!(grants(&desk, &key).is_empty());
}
