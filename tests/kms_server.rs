//! The daemon as callers and operators meet it: protocol, limits, identities, life and death.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod kmsd_support;

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use kmsd_support::port::free_address;
use kmsd_support::{Http, Kmsd, PATIENCE, assert_fails, assert_ok, kmsd, request_bytes, wait_until};
use kmsfs::api::hex;
use kmsfs::api::sigv4::{Scope, SignedParts, authorization, canonical_request, string_to_sign, time_text};
use kmsfs::crypto::{SigningKey, sha256};
use serde_json::{Value, json};

// ---- protocol ----

#[test]
fn a_data_key_made_over_the_socket_decrypts_over_the_socket() {
    let daemon = Kmsd::running();
    let key = daemon.create_key();
    let context = json!({"volume": "v", "file": "f"});
    let made = daemon
        .ok("GenerateDataKey", &json!({"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context}));
    let opened = daemon
        .ok("Decrypt", &json!({"CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": context}));
    assert_eq!(opened["Plaintext"], made["Plaintext"]);
    let (status, answer) = daemon.call("Decrypt", &json!({"CiphertextBlob": made["CiphertextBlob"]}));
    assert_eq!((status, &answer["__type"]), (400, &json!("InvalidCiphertextException")));
}

#[test]
fn an_answer_carries_its_request_id_and_the_audit_record_the_same() {
    let daemon = Kmsd::running();
    let mut http = daemon.connect();
    http.send(&request_bytes("ListKeys", &[], b"{}"));
    let response = http.receive();
    assert_eq!(response.header("content-type"), Some("application/x-amz-json-1.1"));
    let id = response.header("x-amzn-requestid").unwrap().to_owned();
    let records = audit_records(&daemon);
    let record = records.iter().find(|record| record["requestID"] == json!(id)).unwrap();
    assert_eq!(record["eventName"], json!("ListKeys"));
    assert_eq!(record["userIdentity"]["type"], json!("Root"));
    assert_eq!(record["peer"]["pid"], json!(std::process::id()));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let daemon = Kmsd::running();
    let mut http = daemon.connect();
    let mut all = Vec::new();
    for count in 1..=50 {
        let body = json!({"NumberOfBytes": count}).to_string();
        all.extend(request_bytes("GenerateRandom", &[], body.as_bytes()));
    }
    http.send(&all);
    for count in 1..=50usize {
        let answer = http.receive().json();
        let text = answer["Plaintext"].as_str().unwrap();
        assert_eq!(text.trim_end_matches('=').len(), (count * 4).div_ceil(3));
    }
}

#[test]
fn bad_json_bad_targets_and_bad_paths_are_told_apart_and_harm_nobody() {
    let daemon = Kmsd::running();
    let mut http = daemon.connect();
    let mut answer = |bytes: &[u8]| {
        http.send(bytes);
        let response = http.receive();
        (response.status, response.json()["__type"].as_str().unwrap_or_default().to_owned())
    };
    for body in [&b"{"[..], b"", b"[]", b"\xff\xfe", b"{\"KeyId\":\"a\",\"KeyId\":1}"] {
        let (status, kind) = answer(&request_bytes("DescribeKey", &[], body));
        assert_eq!(status, 400, "{body:?}");
        assert!(kind == "SerializationException" || kind == "ValidationException", "{body:?}: {kind}");
    }
    let nested = "[".repeat(60_000);
    assert_eq!(answer(&request_bytes("DescribeKey", &[], nested.as_bytes())).1, "SerializationException");
    assert_eq!(answer(&request_bytes("NoSuchThing", &[], b"{}")).1, "UnknownOperationException");
    assert_eq!(answer(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").0, 404);
    assert_eq!(answer(b"POST /other HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").0, 404);
    assert_eq!(answer(&request_bytes("ListKeys", &[], b"{}")).0, 200);
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let daemon = Kmsd::running();
    let mut http = daemon.connect();
    let head =
        "POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: TrentService.Encrypt\r\nContent-Length: 65537\r\n\r\n";
    http.send(head.as_bytes());
    let response = http.receive();
    assert_eq!(response.status, 413);
    assert_eq!(response.json()["__type"], json!("RequestEntityTooLargeException"));
    assert!(http.try_receive().is_none(), "the connection is closed");
    // Without a length in advance, too.
    let mut http = daemon.connect();
    http.send(b"POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: TrentService.Encrypt\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = [b"8000\r\n".to_vec(), vec![b'a'; 0x8000], b"\r\n".to_vec()].concat();
    http.send(&[chunk.clone(), chunk.clone(), chunk].concat());
    assert_eq!(http.receive().status, 413);
}

#[test]
fn headers_beyond_the_limit_are_refused() {
    let daemon = Kmsd::running();
    let mut http = daemon.connect();
    let many = "X-Many: 1\r\n".repeat(200);
    http.send(format!("POST / HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes());
    assert_eq!(http.receive().status, 431);
    let mut http = daemon.connect();
    let long = "a".repeat(40_000);
    http.send(format!("POST / HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n").as_bytes());
    // The kernel may drop the answer when the connection closes on what was not read.
    assert!(http.try_receive().is_none_or(|response| response.status == 431));
    assert_eq!(daemon.call("ListKeys", &json!({})).0, 200);
}

#[test]
fn half_a_request_and_a_hang_up_hold_nobody_up() {
    let daemon = Kmsd::running();
    let whole = request_bytes("ListKeys", &[], b"{}");
    let mut halves: Vec<_> = (1..whole.len()).step_by(7).map(|cut| (cut, daemon.connect())).collect();
    for (cut, http) in &mut halves {
        http.send(&whole[..*cut]);
    }
    assert_eq!(daemon.call("ListKeys", &json!({})).0, 200);
    for (_, http) in halves.iter().step_by(2) {
        http.stream.get_ref().shutdown(Shutdown::Both).unwrap();
    }
    // The others finish what they began.
    for (cut, http) in halves.iter_mut().skip(1).step_by(2) {
        http.send(&whole[*cut..]);
        assert_eq!(http.receive().status, 200);
    }
}

#[test]
fn a_thousand_connections_are_all_served() {
    const COUNT: usize = 1000;
    kmsfs::sys::harden::raise_open_files(4096);
    let daemon = Kmsd::running();
    let mut all: Vec<_> = (0..COUNT).map(|_| daemon.connect()).collect();
    let request = request_bytes("GenerateRandom", &[], br#"{"NumberOfBytes":16}"#);
    for http in &mut all {
        http.send(&request);
    }
    assert!(all.iter_mut().all(|http| http.receive().status == 200));
    for http in &mut all {
        http.send(&request);
    }
    assert!(all.iter_mut().rev().all(|http| http.receive().status == 200));
}

// ---- who calls ----

const SEED: &str = r#"
[[users]]
name = "alice"
access_keys = [{ id = "AKIDALICE00000000", secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY" }]
[users.policies]
all = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*"}]}'

[[users]]
name = "bob"
access_keys = [{ id = "AKIDBOB0000000000", secret = "another/secret/of/bob" }]

[[keys]]
id = "1234abcd-12ab-34cd-56ef-1234567890ab"
aliases = ["alias/seeded"]
description = "from the seed"
tags = { team = "storage" }
material = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#;

fn seeded() -> (Kmsd, std::net::SocketAddr) {
    let daemon = Kmsd::initialised();
    let (seed, address) = (daemon.base.join("seed.toml"), free_address());
    fs::write(&seed, SEED).unwrap();
    let daemon = daemon.with(&["--seed", seed.to_str().unwrap(), "--listen", &address.to_string()]);
    daemon.start();
    (daemon, address)
}

struct Signer<'a> {
    id: &'a str,
    secret: &'a str,
    region: &'a str,
    host: String,
    skew_seconds: i64,
}

impl Signer<'_> {
    fn alice(address: std::net::SocketAddr) -> Self {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        Self { id: "AKIDALICE00000000", secret, region: "local", host: address.to_string(), skew_seconds: 0 }
    }

    /// A signed request; `sent` is the body that goes over the wire.
    fn request(&self, operation: &str, signed_body: &[u8], sent: &[u8]) -> Vec<u8> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + self.skew_seconds;
        let time = time_text(now as u64);
        let target = format!("TrentService.{operation}");
        let headers = [("host", self.host.as_str()), ("x-amz-date", &time), ("x-amz-target", &target)];
        let signed = ["host", "x-amz-date", "x-amz-target"];
        let body_hash = sha256(signed_body);
        let parts = SignedParts::of_call(&headers, &signed, &body_hash);
        let scope = Scope { date: &time[..8], region: self.region, service: "kms" };
        let text = string_to_sign(&time, &scope, &sha256(canonical_request(&parts).unwrap().as_bytes()));
        let key = SigningKey::derive(self.secret.as_bytes(), scope.date, scope.region, scope.service);
        let authorization = authorization(self.id, &scope, &signed, &hex(&key.sign(&text)));
        let mut out = format!(
            "POST / HTTP/1.1\r\nHost: {}\r\nX-Amz-Date: {time}\r\nX-Amz-Target: {target}\r\n\
             Authorization: {authorization}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            sent.len()
        )
        .into_bytes();
        out.extend_from_slice(sent);
        out
    }

    fn call(&self, address: std::net::SocketAddr, operation: &str, body: &[u8]) -> (u16, Value) {
        exchange(address, &self.request(operation, body, body))
    }
}

fn exchange(address: std::net::SocketAddr, bytes: &[u8]) -> (u16, Value) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut http = Http { stream: std::io::BufReader::new(stream) };
    http.send(bytes);
    let response = http.receive();
    (response.status, response.json())
}

#[test]
fn tcp_callers_are_who_signed_and_nobody_else() {
    let (_daemon, address) = seeded();
    let kind = |(status, answer): (u16, Value)| {
        assert_eq!(status, 400, "{answer}");
        answer["__type"].as_str().unwrap().to_owned()
    };
    let alice = Signer::alice(address);
    assert_eq!(alice.call(address, "ListKeys", b"{}").0, 200);
    assert_eq!(
        kind(exchange(address, &request_bytes("ListKeys", &[], b"{}"))),
        "MissingAuthenticationTokenException"
    );
    let other_secret = Signer { secret: "wrong", ..Signer::alice(address) };
    assert_eq!(kind(other_secret.call(address, "ListKeys", b"{}")), "InvalidSignatureException");
    let stranger = Signer { id: "AKIDNOBODY0000000", ..Signer::alice(address) };
    assert_eq!(kind(stranger.call(address, "ListKeys", b"{}")), "UnrecognizedClientException");
    let elsewhere = Signer { region: "eu-west-1", ..Signer::alice(address) };
    assert_eq!(kind(elsewhere.call(address, "ListKeys", b"{}")), "InvalidSignatureException");
    let late = Signer { skew_seconds: -16 * 60, ..Signer::alice(address) };
    let (_, answer) = late.call(address, "ListKeys", b"{}");
    assert!(answer["message"].as_str().unwrap().starts_with("Signature expired: "), "{answer}");
    let swapped = alice.request("ListKeys", b"{}", b"{\"Limit\":5}");
    assert_eq!(kind(exchange(address, &swapped)), "InvalidSignatureException");
    let unreadable = request_bytes("ListKeys", &[("Authorization", "AWS4-HMAC-SHA256 Credential=x")], b"{}");
    assert_eq!(kind(exchange(address, &unreadable)), "IncompleteSignature");
}

#[test]
fn the_policy_of_who_signed_decides() {
    let (daemon, address) = seeded();
    let bob = Signer { id: "AKIDBOB0000000000", secret: "another/secret/of/bob", ..Signer::alice(address) };
    let (status, answer) = bob.call(address, "DescribeKey", br#"{"KeyId":"alias/seeded"}"#);
    assert_eq!((status, &answer["__type"]), (400, &json!("AccessDeniedException")));
    let message = answer["Message"].as_str().unwrap();
    assert!(message.starts_with(
        "User: arn:aws:iam::000000000000:user/bob is not authorized to perform: kms:DescribeKey"
    ));
    let (status, answer) =
        Signer::alice(address).call(address, "DescribeKey", br#"{"KeyId":"alias/seeded"}"#);
    assert_eq!(status, 200, "{answer}");
    let records = audit_records(&daemon);
    let denied = records.iter().find(|r| r["errorCode"] == json!("AccessDeniedException")).unwrap();
    assert_eq!(denied["userIdentity"]["accessKeyId"], json!("AKIDBOB0000000000"));
}

#[test]
fn a_seed_makes_what_is_missing_and_changes_nothing_that_is_there() {
    let (daemon, address) = seeded();
    let described = daemon.ok("DescribeKey", &json!({"KeyId": "alias/seeded"}));
    assert_eq!(described["KeyMetadata"]["KeyId"], json!("1234abcd-12ab-34cd-56ef-1234567890ab"));
    assert_eq!(described["KeyMetadata"]["Description"], json!("from the seed"));
    let blob =
        daemon.ok("Encrypt", &json!({"KeyId": "alias/seeded", "Plaintext": "aGVsbG8="}))["CiphertextBlob"]
            .clone();
    let id = "1234abcd-12ab-34cd-56ef-1234567890ab";
    daemon.ok("UpdateKeyDescription", &json!({"KeyId": id, "Description": "mine now"}));
    assert_ok(&daemon.stop());
    daemon.start();
    let described = daemon.ok("DescribeKey", &json!({"KeyId": "alias/seeded"}));
    assert_eq!(described["KeyMetadata"]["Description"], json!("mine now"));
    assert_eq!(daemon.ok("Decrypt", &json!({"CiphertextBlob": blob}))["Plaintext"], json!("aGVsbG8="));
    // Another store with the same seed opens the same ciphertext: the material is the seed's.
    let (other, _) = seeded();
    assert_eq!(other.ok("Decrypt", &json!({"CiphertextBlob": blob}))["Plaintext"], json!("aGVsbG8="));
    assert_eq!(Signer::alice(address).call(address, "ListKeys", b"{}").0, 200);
}

#[test]
fn a_wrong_seed_or_map_stops_the_start_and_names_the_line() {
    let daemon = Kmsd::initialised();
    let (file, path) = (daemon.base.join("f.toml"), daemon.base.join("f.toml").display().to_string());
    fs::write(&file, "[[users]]\nname = \"a\"\npasword = \"x\"\n").unwrap();
    assert_fails(&daemon.serve(&["--seed", &path], None), 8, "line 3");
    fs::write(&file, "account = \"111111111111\"\n").unwrap();
    assert_fails(&daemon.serve(&["--seed", &path], None), 8, "111111111111");
    fs::write(&file, "[users]\nroot = \"emperor\"\n").unwrap();
    assert_fails(&daemon.serve(&["--map", &path], None), 8, "emperor");
    assert_fails(&daemon.serve(&["--map", "/no/such/file"], None), 8, "/no/such/file");
}

#[test]
fn the_map_makes_unix_users_other_principals() {
    let daemon = Kmsd::initialised();
    let map = daemon.base.join("map.toml");
    let uid = rustix::process::geteuid().as_raw();
    fs::write(&map, format!("[users]\n{uid} = \"user/mapped\"\n")).unwrap();
    let daemon = daemon.with(&["--map", map.to_str().unwrap()]);
    daemon.start();
    let (status, answer) = daemon.call("CreateKey", &json!({}));
    assert_eq!(status, 400);
    assert!(
        answer["Message"].as_str().unwrap().contains("arn:aws:iam::000000000000:user/mapped"),
        "{answer}"
    );
    fs::write(&map, format!("[users]\n{uid} = \"refuse\"\n")).unwrap();
    assert_ok(&daemon.stop());
    daemon.start();
    let (_, answer) = daemon.call("ListKeys", &json!({}));
    assert_eq!(answer["__type"], json!("MissingAuthenticationTokenException"));
}

#[test]
fn users_and_their_access_keys_are_managed_over_the_socket() {
    let address = free_address();
    let daemon = Kmsd::initialised().with(&["--listen", &address.to_string()]);
    daemon.start();
    let socket = daemon.socket();
    let iam = |arguments: &[&str]| {
        let mut all = vec!["iam", "--socket", socket.to_str().unwrap()];
        all.extend(arguments);
        kmsd(&all, None)
    };
    assert_ok(&iam(&["create-user", "carol"]));
    assert_fails(&iam(&["create-user", "carol"]), 1, "carol");
    let policy = daemon.base.join("policy.json");
    fs::write(
        &policy,
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:ListKeys","Resource":"*"}]}"#,
    )
    .unwrap();
    assert_ok(&iam(&["put-user-policy", "carol", "list", policy.to_str().unwrap()]));
    let made = iam(&["create-access-key", "carol"]);
    assert_ok(&made);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let access = &made["AccessKey"];
    let (id, secret) = (access["AccessKeyId"].as_str().unwrap(), access["SecretAccessKey"].as_str().unwrap());
    let carol = Signer { id, secret, ..Signer::alice(address) };
    assert_eq!(carol.call(address, "ListKeys", b"{}").0, 200);
    assert_eq!(carol.call(address, "CreateKey", b"{}").1["__type"], json!("AccessDeniedException"));
    assert_ok(&iam(&["update-access-key", id, "inactive"]));
    assert_eq!(carol.call(address, "ListKeys", b"{}").1["__type"], json!("UnrecognizedClientException"));
    assert_ok(&iam(&["delete-access-key", id]));
    assert_eq!(carol.call(address, "ListKeys", b"{}").1["__type"], json!("UnrecognizedClientException"));
}

// ---- life and death ----

#[test]
fn a_state_directory_that_is_missing_bare_or_done_is_told_apart() {
    let daemon = Kmsd::bare();
    let key = format!("keyfile:{}", daemon.base.join("key").display());
    assert_fails(&daemon.serve(&[], None), 3, "kmsd init");
    fs::create_dir(daemon.state()).unwrap();
    fs::set_permissions(daemon.state(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_fails(&daemon.serve(&[], None), 3, "kmsd init");
    assert_ok(&daemon.init(&["--seal", &key]));
    assert_eq!(fs::metadata(daemon.base.join("key")).unwrap().permissions().mode() & 0o777, 0o400);
    assert_fails(&daemon.init(&["--seal", &key]), 3, "initialised already");
    fs::set_permissions(daemon.state(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_fails(&daemon.serve(&[], None), 3, "chmod 0700");
}

#[test]
fn a_wrong_key_file_or_passphrase_is_told_and_the_right_one_goes() {
    let daemon = Kmsd::initialised();
    let other = daemon.base.join("other");
    fs::write(&other, "0123456789012345678901234567890123456789").unwrap();
    let seal = format!("keyfile:{}", other.display());
    fs::set_permissions(&other, fs::Permissions::from_mode(0o644)).unwrap();
    assert_fails(&daemon.serve(&["--seal", &seal], None), 4, "chmod 0400");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o400)).unwrap();
    assert_fails(&daemon.serve(&["--seal", &seal], None), 4, "does not unseal");
    assert_fails(&daemon.serve(&["--seal", "passphrase"], Some("x\n")), 4, "sealed by a key file");
    let missing = format!("keyfile:{}", daemon.base.join("none").display());
    assert_fails(&daemon.serve(&["--seal", &missing], None), 4, "no such file");

    let daemon = Kmsd::bare();
    let phrase = daemon.base.join("phrase");
    fs::write(&phrase, "correct horse battery\n").unwrap();
    fs::set_permissions(&phrase, fs::Permissions::from_mode(0o400)).unwrap();
    assert_ok(&daemon.init(&["--seal", &format!("passphrase:{}", phrase.display())]));
    assert_fails(&daemon.serve(&[], Some("wrong horse battery\n")), 4, "passphrase does not unseal");
    assert_fails(&daemon.serve(&[], Some("\n")), 4, "empty");
    assert_ok(&daemon.serve(&[], Some("correct horse battery\n")));
    assert_eq!(daemon.call("ListKeys", &json!({})).0, 200);
    assert!(!daemon.log().contains("horse"));
}

#[test]
fn a_live_daemon_is_never_taken_over_and_a_dead_one_always() {
    let daemon = Kmsd::running();
    let key = daemon.create_key();
    assert_fails(&daemon.serve(&[], None), 5, "is running on");
    assert_eq!(daemon.call("DescribeKey", &json!({"KeyId": key})).0, 200);
    daemon.kill();
    assert!(daemon.socket().exists(), "the dead daemon's socket is still there");
    daemon.start();
    assert_eq!(daemon.call("DescribeKey", &json!({"KeyId": key})).0, 200);
    assert_ok(&daemon.stop());
    assert!(!daemon.socket().exists());
    assert_fails(&daemon.stop(), 5, "no kmsd is running");
}

#[test]
fn a_place_that_cannot_be_listened_at_is_told_with_what_to_do() {
    let daemon = Kmsd::initialised();
    let serve_at = |socket: &std::path::Path, more: &[&str]| {
        let state = daemon.state();
        let mut all = vec!["serve", "--background", "--dir", state.to_str().unwrap()];
        all.extend(["--socket", socket.to_str().unwrap()]);
        all.extend(more);
        kmsd(&all, None)
    };
    assert_fails(&serve_at(&daemon.base.join("no/dir/sock"), &[]), 6, "mkdir -p");
    let file = daemon.base.join("file");
    fs::write(&file, "precious").unwrap();
    assert_fails(&serve_at(&file, &[]), 6, "not a socket");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let _other = UnixListener::bind(daemon.socket()).unwrap();
    assert_fails(&serve_at(&daemon.socket(), &[]), 6, "another program answers");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_fails(&serve_at(&daemon.base.join("free"), &["--listen", &address]), 6, "in use");
}

#[test]
fn a_call_in_flight_is_answered_though_the_daemon_stops() {
    let daemon = Kmsd::running();
    let body = br#"{"NumberOfBytes":8}"#;
    let whole = request_bytes("GenerateRandom", &[("Expect", "100-continue")], body);
    let (head, rest) = whole.split_at(whole.len() - body.len());
    let mut http = daemon.connect();
    http.send(head);
    assert_eq!(http.receive().status, 100, "the daemon waits for the body");
    let pid = rustix::process::Pid::from_raw(daemon.pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    wait_until(|| !daemon.socket().exists());
    http.send(rest);
    assert_eq!(http.receive().status, 200);
    assert!(http.try_receive().is_none(), "then the connection is closed");
}

/// How often the daemon is killed; `KMSFS_KILLS` for more.
fn kills() -> usize {
    std::env::var("KMSFS_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// Writes with four clients until the daemon is killed; the keys whose making was acknowledged.
fn write_until_killed(daemon: &Kmsd) -> Vec<String> {
    let stopping = AtomicBool::new(false);
    let before = audit_lines(daemon);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (mut http, mut made) = (daemon.connect(), Vec::new());
                    while !stopping.load(Ordering::Relaxed) {
                        let bytes = request_bytes("CreateKey", &[], b"{}");
                        if http.stream.get_mut().write_all(&bytes).is_err() {
                            break;
                        }
                        let Some(response) = http.try_receive() else { break };
                        made.push(response.json()["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned());
                    }
                    made
                })
            })
            .collect();
        wait_until(|| audit_lines(daemon) >= before + 40);
        daemon.kill();
        stopping.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

#[test]
fn a_daemon_killed_again_and_again_loses_nothing_that_it_acknowledged() {
    let daemon = Kmsd::running();
    let mut acknowledged = Vec::new();
    for _ in 0..kills() {
        let made = write_until_killed(&daemon);
        assert!(made.len() >= 20, "{}", made.len());
        acknowledged.extend(made);
        daemon.start();
        for key in &acknowledged {
            daemon.ok("DescribeKey", &json!({"KeyId": key}));
        }
        daemon.ok("GenerateDataKey", &json!({"KeyId": acknowledged[0], "KeySpec": "AES_256"}));
        assert_ok(&daemon.verify_audit());
    }
}

#[test]
fn a_tampered_store_does_not_open() {
    for sql in [
        "UPDATE row SET body = CAST(replace(CAST(body AS TEXT), 'Enabled', 'Disabled') AS BLOB) WHERE tbl = 3",
        "DELETE FROM row WHERE tbl = 3",
        "UPDATE row SET body = x'00' WHERE tbl = 1",
    ] {
        let daemon = Kmsd::running();
        daemon.create_key();
        assert_ok(&daemon.stop());
        let database = rusqlite::Connection::open(daemon.state().join("store.db")).unwrap();
        assert!(database.execute(sql, []).unwrap() > 0);
        drop(database);
        assert_fails(&daemon.serve(&[], None), 7, "changed by something else");
    }
}

#[test]
fn a_damaged_or_newer_state_is_told_apart() {
    let daemon = Kmsd::initialised();
    let root = daemon.state().join("root");
    let good = fs::read(&root).unwrap();
    fs::write(&root, &good[..good.len() / 2]).unwrap();
    assert_fails(&daemon.serve(&[], None), 7, "is damaged");
    let mut newer = good.clone();
    newer[8] = 9;
    fs::write(&root, newer).unwrap();
    assert_fails(&daemon.serve(&[], None), 7, "newer kmsd");
    fs::write(&root, good).unwrap();
    fs::remove_file(daemon.state().join("audit/head")).unwrap();
    assert_fails(&daemon.serve(&[], None), 7, "kmsd audit reset");
    let state = daemon.state();
    assert_ok(&kmsd(&["audit", "--dir", state.to_str().unwrap(), "reset"], None));
    daemon.start();
}

#[test]
fn an_edited_audit_log_is_noticed_by_verify_and_by_the_next_start() {
    let daemon = Kmsd::running();
    daemon.create_key();
    daemon.create_key();
    assert_ok(&daemon.verify_audit());
    assert_ok(&daemon.stop());
    let path = daemon.state().join("audit/audit-000000000001.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("CreateKey", "DeleteKey", 1)).unwrap();
    assert_fails(&daemon.verify_audit(), 7, "was changed");
    assert_fails(&daemon.serve(&[], None), 7, "was changed");
    let first = text.split_inclusive('\n').next().unwrap();
    fs::write(&path, first).unwrap();
    assert_fails(&daemon.verify_audit(), 7, "cut off");
}

#[test]
fn the_daemon_cannot_be_dumped_and_its_files_are_its_own() {
    let daemon = Kmsd::running();
    let pid = daemon.pid();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    for entry in fs::read_dir(daemon.state()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
    }
    assert_eq!(fs::metadata(daemon.socket()).unwrap().permissions().mode() & 0o777, 0o660);
}

fn audit_lines(daemon: &Kmsd) -> usize {
    let path = daemon.state().join("audit/audit-000000000001.jsonl");
    fs::read_to_string(path).map_or(0, |text| text.matches('\n').count())
}

fn audit_records(daemon: &Kmsd) -> Vec<Value> {
    let text = fs::read_to_string(daemon.state().join("audit/audit-000000000001.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
