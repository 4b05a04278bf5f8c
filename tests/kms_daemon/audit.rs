//! The audit log in the operator's hands.

use std::fs;

use serde_json::{Value, json};

use crate::kmsd_support::{Kmsd, assert_fails, assert_ok, kmsd};

fn audit(daemon: &Kmsd, arguments: &[&str]) -> std::process::Output {
    let state = daemon.state();
    let mut all = vec!["audit", "--dir", state.to_str().unwrap()];
    all.extend(arguments);
    kmsd(&all, None)
}

fn found(daemon: &Kmsd, arguments: &[&str]) -> Vec<Value> {
    let output = audit(daemon, &[&["search"], arguments].concat());
    assert_ok(&output);
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn records_are_found_by_key_operation_error_and_time() {
    let daemon = Kmsd::running();
    let (one, two) = (daemon.create_key(), daemon.create_key());
    for key in [&one, &one, &two] {
        daemon.ok("GenerateDataKey", &json!({"KeyId": key, "KeySpec": "AES_256"}));
    }
    daemon.call("DescribeKey", &json!({"KeyId": "alias/none"}));
    assert_eq!(found(&daemon, &["--key", &one]).len(), 3);
    assert_eq!(found(&daemon, &["--key", &one, "--operation", "GenerateDataKey"]).len(), 2);
    assert_eq!(found(&daemon, &["--operation", "GenerateDataKey", "-n", "1"]).len(), 1);
    let failed = found(&daemon, &["--error", "any"]);
    assert_eq!((failed.len(), &failed[0]["errorCode"]), (1, &json!("NotFoundException")));
    assert!(found(&daemon, &["--principal", "user/nobody"]).is_empty());
    assert_eq!(found(&daemon, &["--since", "1h"]).len(), found(&daemon, &[]).len());
    assert!(found(&daemon, &["--until", "1h"]).is_empty());
    assert!(found(&daemon, &["--error", "ThrottlingException"]).is_empty());
    assert!(found(&daemon, &["--error", "NoSuchEntity"]).is_empty());
    assert_fails(&audit(&daemon, &["search", "--error", "NOPE"]), 2, "there is none of that name");
    let state = daemon.state();
    let behind = kmsd(&["audit", "search", "--dir", state.to_str().unwrap(), "-n", "1"], None);
    assert_eq!(String::from_utf8_lossy(&behind.stdout).lines().count(), 1, "{behind:?}");
    let wrong = audit(&daemon, &["search", "--since", "yesterday"]);
    assert!(wrong.status.code() == Some(2) && String::from_utf8_lossy(&wrong.stderr).contains("2026-01-31"));
}

#[test]
fn archived_segments_are_accepted_when_the_operator_says_so() {
    let daemon = Kmsd::running();
    (0..3).for_each(|_| drop(daemon.create_key()));
    assert_ok(&daemon.stop());
    // Two segments: the first is closed by its size.
    let dir = daemon.state().join("audit");
    let first = dir.join("audit-000000000001.jsonl");
    let text = fs::read_to_string(&first).unwrap();
    let (head, tail) = text.split_at(text.rfind("\n{").unwrap() + 1);
    let second = dir.join(format!("audit-{:012}.jsonl", head.lines().count() + 1));
    fs::write(&first, head).unwrap();
    fs::write(&second, tail).unwrap();
    assert_ok(&daemon.verify_audit());
    fs::rename(&first, daemon.base.join("archived")).unwrap();
    assert_fails(&daemon.serve(&[], None), 7, "--accept-missing");
    assert_ok(&audit(&daemon, &["prune", "--accept-missing"]));
    assert_ok(&daemon.verify_audit());
    daemon.start();
    daemon.create_key();
    assert_ok(&daemon.verify_audit());
}

#[test]
fn the_log_is_no_longer_than_was_asked_for() {
    let daemon = Kmsd::running();
    assert_fails(&audit(&daemon, &["prune", "--keep-days", "1"]), 5, "is running");
    assert_ok(&daemon.stop());
    assert_ok(&audit(&daemon, &["prune", "--keep-days", "1"]));
    daemon.start();
}
