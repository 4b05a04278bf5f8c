//! Services that call for others: who is believed, who is decided for, who stands in the record, and how they learn of
//! changes.

use std::fs;

use serde_json::{Value, json};

use crate::kmsd_support::{Kmsd, assert_fails, kmsd, request_bytes};

const SERVICE: (&str, &str) = ("X-Kms-Via-Service", "kmsfs");
const ALICE: &str = "arn:aws:iam::000000000000:user/unix/uid-20001";

fn call(daemon: &Kmsd, headers: &[(&str, &str)], operation: &str, request: &Value) -> (u16, Value) {
    let mut http = daemon.connect();
    http.send(&request_bytes(operation, headers, request.to_string().as_bytes()));
    let response = http.receive();
    (response.status, response.json())
}

fn behalf(user: &'static str) -> [(&'static str, &'static str); 2] {
    [SERVICE, ("X-Kms-On-Behalf-Of", user)]
}

fn records(daemon: &Kmsd, operation: &str) -> Vec<Value> {
    let state = daemon.state();
    let found = kmsd(&["audit", "--dir", state.to_str().unwrap(), "search", "--operation", operation], None);
    let text = String::from_utf8(found.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_key_policy_decides_for_the_user_behind_the_service_and_the_record_names_both() {
    let daemon = Kmsd::running();
    let key = daemon.create_key();
    let sealing = json!({"KeyId": key, "KeySpec": "AES_256"});
    assert_eq!(
        call(&daemon, &behalf("20001"), "GenerateDataKey", &sealing).1["__type"],
        "AccessDeniedException"
    );
    let policy = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::000000000000:root"}, "Action": "kms:*", "Resource": "*"},
        {"Effect": "Allow", "Principal": {"AWS": ALICE}, "Action": "kms:GenerateDataKey", "Resource": "*",
         "Condition": {"StringEquals": {"kms:ViaService": "kmsfs.local.amazonaws.com"}}},
    ]});
    daemon.ok("PutKeyPolicy", &json!({"KeyId": key, "Policy": policy.to_string()}));
    assert_eq!(call(&daemon, &behalf("20001"), "GenerateDataKey", &sealing).0, 200);
    assert_eq!(call(&daemon, &behalf("20002"), "GenerateDataKey", &sealing).0, 400);
    let records = records(&daemon, "GenerateDataKey");
    let by_alice: Vec<&Value> = records.iter().filter(|r| r["userIdentity"]["arn"] == ALICE).collect();
    assert_eq!(by_alice.len(), 2, "{records:?}");
    assert_eq!(by_alice[0]["userIdentity"]["invokedBy"], "kmsfs.local.amazonaws.com");
    assert_eq!(by_alice[0]["peer"]["pid"], json!(std::process::id()), "the service, as the kernel knows it");
}

#[test]
fn a_user_behind_a_service_is_never_the_operator() {
    let daemon = Kmsd::running();
    let explain = json!({"PrincipalArn": ALICE, "Action": "kms:Decrypt", "KeyId": daemon.create_key()});
    assert_eq!(call(&daemon, &[], "KmsdAdmin.Explain", &explain).0, 200);
    let (status, answer) = call(&daemon, &behalf("0"), "KmsdAdmin.Explain", &explain);
    assert_eq!((status, &answer["__type"]), (400, &json!("AccessDeniedException")));
}

#[test]
fn who_is_no_service_is_told_so_and_the_attempt_is_recorded() {
    let daemon = Kmsd::initialised();
    let map = daemon.base.join("map.toml");
    fs::write(&map, "[users]\n20003 = \"refuse\"\n[services]\nkmsfs = [\"20009\"]\n").unwrap();
    let daemon = daemon.with(&["--map", map.to_str().unwrap()]);
    daemon.start();
    let key = daemon.create_key();
    let sealing = json!({"KeyId": key, "KeySpec": "AES_256"});
    for headers in [&behalf("20001")[..], &[("X-Kms-On-Behalf-Of", "20001")]] {
        let (status, answer) = call(&daemon, headers, "GenerateDataKey", &sealing);
        assert_eq!((status, &answer["__type"]), (400, &json!("AccessDeniedException")));
        let message = answer["Message"].as_str().unwrap();
        assert!(
            message.starts_with("Service principal not trusted") && message.contains("[services]"),
            "{message}"
        );
    }
    let records = records(&daemon, "GenerateDataKey");
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|r| r["errorCode"] == "AccessDeniedException"));
    // Nor does its word count where policies ask for the service: nobody but a service makes the managed key.
    let (_, answer) = call(&daemon, &[SERVICE], "DescribeKey", &json!({"KeyId": "alias/aws/kmsfs"}));
    assert_eq!(answer["__type"], "NotFoundException");
}

#[test]
fn a_user_whom_the_map_refuses_or_who_is_no_number_is_refused_behind_a_service_too() {
    let daemon = Kmsd::initialised();
    let map = daemon.base.join("map.toml");
    fs::write(&map, "[users]\n20003 = \"refuse\"\n").unwrap();
    let daemon = daemon.with(&["--map", map.to_str().unwrap()]);
    daemon.start();
    for (user, why) in
        [("20003", "No calls are taken from user 20003"), ("alice", "id of a user"), ("-1", "id of a user")]
    {
        let headers = [SERVICE, ("X-Kms-On-Behalf-Of", user)];
        let (_, answer) = call(&daemon, &headers, "ListKeys", &json!({}));
        assert!(answer["Message"].as_str().is_some_and(|text| text.contains(why)), "{user}: {answer}");
    }
}

#[test]
fn a_map_with_a_service_that_policies_cannot_name_stops_the_start() {
    let daemon = Kmsd::initialised();
    let map = daemon.base.join("map.toml");
    fs::write(&map, "[services]\n\"kmsfs.local\" = [\"root\"]\n").unwrap();
    assert_fails(&daemon.serve(&["--map", map.to_str().unwrap()], None), 8, "kmsfs.local");
}

#[test]
fn whoever_waits_for_a_change_is_told_of_it_and_of_the_end() {
    let daemon = Kmsd::running();
    let wait = |since: &str| {
        request_bytes("KmsdAdmin.AwaitChange", &[], json!({"Since": since}).to_string().as_bytes())
    };
    let mut http = daemon.connect();
    let mut next = |since: &str| {
        http.send(&wait(since));
        http.receive().json()["Token"].as_str().unwrap().to_owned()
    };
    let first = next("");
    let key = daemon.create_key();
    let second = next(&first);
    assert_ne!(second, first);
    http.send(&wait(&second));
    daemon.ok("DisableKey", &json!({"KeyId": key}));
    assert_ne!(http.receive().json()["Token"], second.as_str());
    // One who waits does not hold up the end, and another run of the daemon is a change.
    let third = {
        http.send(&wait(""));
        http.receive().json()["Token"].as_str().unwrap().to_owned()
    };
    http.send(&wait(&third));
    assert!(daemon.stop().status.success());
    assert!(http.try_receive().is_some());
    daemon.start();
    let mut http = daemon.connect();
    http.send(&wait(&third));
    assert_ne!(http.receive().json()["Token"], third.as_str());
    http.send(&request_bytes("KmsdAdmin.AwaitChange", &[], b"{\"Since\":1}"));
    assert_eq!(http.receive().json()["__type"], "SerializationException");
}
